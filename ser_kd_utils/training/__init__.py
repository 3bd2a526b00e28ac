"""Training: an experiment, its datasets, the loop, tests and shared losses."""

from transformers.utils.logging import disable_progress_bar, set_verbosity_error

disable_progress_bar()  # bars and notices would stand in stored notebooks
set_verbosity_error()
