"""Files: written whole, locked, read with care, and progress shown."""
