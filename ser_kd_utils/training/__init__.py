"""What all methods share: dataset, losses, the training loop, evaluation and the experiment that records a run."""
