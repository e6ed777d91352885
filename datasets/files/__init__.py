"""Files: written atomically, locked, read with limits."""
