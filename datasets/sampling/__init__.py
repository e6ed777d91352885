"""Which images are in which batch: views, the batch plan and keyed random numbers."""
