"""Images of a batch, decoded and augmented, by one of two loaders."""
