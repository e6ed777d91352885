"""The index of a dataset: its records, table, card and shard files, and merged sets of several datasets."""
