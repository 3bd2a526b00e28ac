"""Knowledge distillation for speech emotion recognition in noise: the package behind the notebooks."""

import warnings

__version__ = "0.1.0"

warnings.filterwarnings("ignore", message="IProgress not found")  # tqdm's advice would stand in stored notebooks
