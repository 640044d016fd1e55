"""The method: calls, options and what they are resolved to."""
