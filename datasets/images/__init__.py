"""One image: encoded for a shard, and checked before it is decoded."""
