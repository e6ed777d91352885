"""Readers: the original images of each known dataset, as records. One file a dataset."""
