"""Allocations of the C module that fail: the k-th of a run, for one k after the other.

`python tests/faults` tries them all; tests/test_faults.py tries each place in the code that allocates; `make fuzz` tries them
all under sanitizers. Memory is malloc's, mmap's, PyMem's and oneDNN's objects; a call of oneDNN that fails is one of these.
"""
