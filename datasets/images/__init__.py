"""One encoded image: checked before it is decoded, and encoded for a shard."""
