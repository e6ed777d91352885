"""Recipes and seeds side by side: shared stages, one table."""
