"""Knowledge distillation for speech emotion recognition in noise: the package behind the notebooks."""

__version__ = "0.1.0"
