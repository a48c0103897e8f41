"""Intervals, paired comparisons and agreement. Pure numpy."""
