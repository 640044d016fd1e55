"""Fuzzing: a seeded mutator, entry points with their corpora, and a runner that watches time and memory.

Every input is a function of (entry point, seed, number), so that its number is enough to make it again.
`python tests/fuzz --help` runs it; tests/test_fuzz.py runs a little of it; `make fuzz` runs it under sanitizers.
"""
