"""Loss terms: the file of a term owns its recipe keys, its state and its computation; registry.py lists the terms."""
