"""Training: an experiment, its datasets, the loop, tests and shared losses."""
