"""From log-probs of completions to the number that is minimized: pure functions of tensors, no model, no config.

A pair has log-probs log pi(y | x) under the policy and the reference, y the chosen or the rejected completion; a
log-ratio is their difference. Values are those of TRL's DPOTrainer, under its names.
"""
