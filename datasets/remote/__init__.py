"""Datasets behind urls, and the cache of their files on each machine."""
