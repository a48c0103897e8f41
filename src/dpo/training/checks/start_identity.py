"""Before step 1 the policy is the reference: every log-ratio is 0, but for what rounding leaves.

Both come from the same weights by the same kernels (the reference cache is keyed by both); only the batches that pairs
were computed in differ, and with them the order in which a kernel adds up. An error of one rounding moves a logit by
eps(dtype) times its size, and the errors of a sequence's tokens add up as a walk, so what rounding leaves grows with
the square root of the tokens. How much that is hangs on kernels and depth: seen on SmolLM2-135M with caches filled by
other batches, budgets and threads, in units of eps(dtype) x the logits' deviation for the root of each token, at most
0.0001 packed in bf16 and NF4 (each row is computed alone there), and 1.2 padded in bf16. Hence it is measured where it
is used, by scoring some pairs once more, each alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dpo.data.pair import TokenPair
from dpo.errors import Diverged

Scores = Sequence[tuple[float, float]]
Sums = Mapping[str, tuple[float, float]]
Lengths = Mapping[str, tuple[int, int]]

# So many pairs are scored a second time.
ALONE = 8
# Times what scoring the same pairs in two ways differed by here, at most; a cache may have been filled in a third.
ROOM = 4.0
# In the unit above. Less is never asked for, as few pairs may happen to agree; more is never let pass: a model of 30
# layers needs ROOM x 1.2, and roundings grow with the root of the depth.
LEAST, MOST = 0.25, 8.0
# Sums of a sequence are held in fp32: so many of its roundings, of the size of the sum.
SUM_ROUNDINGS, SUM_EPS = 16.0, 2.0**-23


@dataclass(frozen=True)
class Rounding:
    """What rounding may leave of a log-ratio.

    unit: eps of the compute type times the deviation of the logits over the vocabulary, nats.
    spread: the largest difference of one sequence's log-prob between two ways to batch it, over the root of its tokens.
    """

    unit: float
    spread: float = 0.0

    def bound(self, total: float, tokens: int) -> float:
        """Most a log-ratio over `tokens` may be off 0 in nats, where the log-prob is `total`."""
        each = min(max(ROOM * self.spread, LEAST * self.unit), MOST * self.unit)
        return each * math.sqrt(tokens) + SUM_ROUNDINGS * SUM_EPS * abs(total)


def eps_of(dtype: Any, matmul: str) -> float:
    """The relative step of a compute type; `matmul` is torch's precision of products in fp32, which may be TF32's."""
    import torch

    return 2.0**-10 if dtype == torch.float32 and matmul != "highest" else float(torch.finfo(dtype).eps)


@dataclass(frozen=True)
class Start:
    """The policy before step 1: summed log-probs (chosen, rejected) in nats and completion lengths by pair id."""

    sums: Sums
    lengths: Lengths
    rounding: Rounding


def score_start(
    model: Any, pairs: Sequence[TokenPair], dtype: Any, token_budget: int, ld_alpha: float | None = None
) -> Start:
    """Score `pairs` by the policy as it stands, and see by the first `ALONE` of them what rounding does.

    `dtype` is the compute type, `token_budget` that of the reference's forwards.
    """
    import torch

    from dpo.engine.log_probs import sequence_log_probs
    from dpo.training.checks.probe import logits_deviation

    scores = sequence_log_probs(model, pairs, token_budget, ld_alpha=ld_alpha)
    alone = sequence_log_probs(model, pairs[:ALONE], 1, ld_alpha=ld_alpha)
    lengths = {pair.id: pair.counted for pair in pairs}
    unit = eps_of(dtype, torch.get_float32_matmul_precision()) * logits_deviation(model, pairs[0])
    seen = spread(scores[:ALONE], alone, [lengths[pair.id] for pair in pairs[:ALONE]])
    return Start({p.id: sums for p, sums in zip(pairs, scores, strict=True)}, lengths, Rounding(unit, seen))


def spread(one: Scores, other: Scores, lengths: Sequence[tuple[int, int]]) -> float:
    """`Rounding.spread` of the same pairs scored in two ways, `lengths` being theirs in the same order."""
    differences = (
        abs(x - y) / math.sqrt(length)
        for a, b, tokens in zip(one, other, lengths, strict=True)
        for x, y, length in zip(a, b, tokens, strict=True)
        if length
    )
    return max(differences, default=0.0)


def check_identity(start: Start, reference: Sums) -> tuple[float, float]:
    """Check that every log-ratio is 0 within its bound: (the one nearest to its bound, that bound), nats a token."""
    nearest, found = -1.0, (0.0, 0.0)
    for key, values in start.sums.items():
        for value, expected, length in zip(values, reference[key], start.lengths[key], strict=True):
            if length == 0:
                continue
            ratio, bound = abs(value - expected), start.rounding.bound(expected, length)
            if not ratio <= bound < math.inf:
                raise Diverged(
                    f"before step 1 the log-ratio of {key} is {ratio:.2g} over {length} tokens, must be 0 within "
                    f"{bound:.2g}, which is what rounding leaves here: the reference is not the starting policy"
                )
            if ratio / bound > nearest:
                nearest, found = ratio / bound, (ratio / length, bound / length)
    return found
