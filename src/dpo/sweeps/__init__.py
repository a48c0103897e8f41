"""A grid of runs, without torch: its jobs, where they run, what was found, and its page."""
