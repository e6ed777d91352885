"""Images of a view through a model: features and embeddings, shared by ranks."""
