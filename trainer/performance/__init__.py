"""Time and memory of a training step: benchmark and dry run."""
