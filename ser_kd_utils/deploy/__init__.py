"""For practitioners: predictions for their own recordings, and networks exported for other programs."""
