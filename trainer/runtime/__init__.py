"""Ranks: starting them, connecting them, watching them and stopping them. Knows no model."""
