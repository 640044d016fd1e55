"""Inversions: what an inversion keeps, its file, its recording and the cache."""
