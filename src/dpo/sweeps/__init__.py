"""A grid of runs: its jobs, where they run, what was found, and its page. Imports no torch."""
