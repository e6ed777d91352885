"""Files: written whole, locked, and read with care."""
