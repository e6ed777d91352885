"""What a step takes: benchmark and dry run."""
