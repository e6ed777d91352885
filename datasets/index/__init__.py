"""The index of a dataset: its records, its card, its file, and several of them merged."""
