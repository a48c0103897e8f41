"""Talking to policy and baseline side by side."""
