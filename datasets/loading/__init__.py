"""Batches as tensors: read, decoded, augmented and on the device."""
