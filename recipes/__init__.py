"""Recipes that ship with embae: ``embae recipes list``."""
