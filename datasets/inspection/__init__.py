"""What a sharded dataset holds, and whether it is whole."""
