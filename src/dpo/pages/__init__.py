"""What is shown of runs and comparisons, without torch: pages, tables, plots, findings."""
