"""The run directory and everything read from it. Nothing here imports torch."""
