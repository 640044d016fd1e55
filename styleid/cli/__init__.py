"""The command line: main, what each command does, and its arguments."""
