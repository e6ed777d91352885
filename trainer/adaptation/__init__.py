"""What changes a model, or makes labels, without labels: calibration and pseudo-labels."""
