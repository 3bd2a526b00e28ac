"""What all methods train with: the data, the experiment, the loop, the evaluation and the shared losses."""
