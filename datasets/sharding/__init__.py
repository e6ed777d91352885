"""Images become shards, by one process or by several machines together."""
