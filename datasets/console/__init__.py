"""What a person sees in a terminal: notes, progress and tables."""
