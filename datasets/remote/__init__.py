"""Datasets behind urls, and the cache of their shards on each machine."""
