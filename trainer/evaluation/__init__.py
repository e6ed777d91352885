"""Scores of a model, of a run and of any dataset, and probes of what its codes hold."""
