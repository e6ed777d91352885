"""The run folder: recipe, stages, data, checks and scores. Imports no torch."""
