"""Speech and noise: corpora with their protocols, decoded audio, noise at an SNR, features, downloads."""
