"""Datasets of images of people: read, sharded, inspected, merged, sampled into batches and loaded."""
