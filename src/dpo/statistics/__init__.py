"""Intervals, paired comparisons and agreement, in pure numpy."""
