"""Ranks: how they are started, meet, are watched and stop. Knows no model."""
