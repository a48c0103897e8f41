"""The packed engine: each prompt once, no padding, the LM head on completion rows only; TRL's losses unchanged.

`collate.pack` lays pairs out, `install.install` teaches a model to compute on that layout and to answer in TRL's
padded one, `budget` splits a step under a token budget, `score` gives log-probs without gradients.
"""
