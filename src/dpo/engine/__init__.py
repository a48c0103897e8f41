"""How a model computes pairs, packed: each prompt once, no padding, the LM head on completion rows only.

`collate` lays pairs out, `install` teaches a model to compute on that layout, `part` feeds what it gives to the
losses, `budget` splits a step under a token budget, `score` gives log-probs without gradients.
"""
