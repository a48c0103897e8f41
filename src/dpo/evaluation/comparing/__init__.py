"""Evaluated runs against each other: read, held comparable, compared, and put into words."""
