"""Formats that other programs load: one file for each, and one line in the registry."""
