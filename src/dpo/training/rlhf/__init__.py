"""RLHF's two stages on the same trainer: a reward model, and a policy trained on what it scores."""
