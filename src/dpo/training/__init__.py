"""The trainer, its checkpoints and guards, the packed engine and the reference cache."""
