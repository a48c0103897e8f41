"""Rows of an evaluation as figures with intervals, over all of it and part by part."""
