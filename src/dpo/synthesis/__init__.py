"""Preference pairs from prompts alone: a generator answers, a judge ranks, the best stands against the worst."""
