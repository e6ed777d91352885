"""``embae report``: one HTML page of a run, which works offline."""
