"""The network, its batch norms and cameras, and the same on disk."""
