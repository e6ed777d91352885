"""A trained model outside of its run: load(), embeddings, search, exported formats."""
