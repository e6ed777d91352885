"""Which images make up the batch of a step: views of datasets, samplers, pseudo-labels."""
