"""Exact neighbours, ranking and scores in NumPy. Imports no torch and reads no files."""
