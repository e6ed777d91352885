"""Clustering methods: the file of a method owns its recipe keys and its computation; registry.py lists the methods."""
