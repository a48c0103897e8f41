"""What is shown of runs and comparisons: pages, tables, plots, findings. Imports no torch."""
