"""The records of a run: console, metrics.jsonl, TensorBoard, traces."""
