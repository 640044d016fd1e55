"""Makes allocations of the C module fail: the k-th of a run, for one k after the other.

`python tests/faults` tries them all; tests/test_faults.py tries each place in the code that allocates; `make fuzz` tries them
all under sanitizers. The allocations are those of malloc, mmap, PyMem and oneDNN's objects.
"""
