"""Measuring a policy against its reference: pairs scored, answers generated and judged, runs compared."""
