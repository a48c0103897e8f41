"""Direct Preference Optimization with QLoRA as a Hydra-configured experiment framework."""

__version__ = "0.1.0"
