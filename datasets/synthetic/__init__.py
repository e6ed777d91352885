"""Draws people, scenes and cameras: the images of the synthetic domains."""
