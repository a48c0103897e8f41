"""The run directory and everything read from it, without torch."""
