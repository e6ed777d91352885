"""Losses and a stage's objective."""
