"""What a practitioner takes away: predictions for own recordings, and networks exported for other programs."""
