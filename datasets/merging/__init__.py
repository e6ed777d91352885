"""One name over several datasets, and the images that they have in common."""
