"""The loop of a stage: its initial model, updates, checkpoints and export."""
