"""What must hold before and during training, checked instead of hoped."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from dpo.config.losses import Dpo, ExoPair, Kto, Mix, PairLoss
from dpo.data.pair import TokenPair
from dpo.errors import Diverged


def loss_at_zero(dpo: Dpo, wanted: float = 0.5) -> float | None:
    """Value of the config's loss when every log-ratio is 0; None where it depends on more than log-ratios.

    Any f-divergence has the value 0 there, and soft labels leave log 2 as it is. `wanted` is the share of answers that
    are, which KTO weighs apart.
    """
    if isinstance(dpo, Mix):
        values = [_at_zero(name, dpo) for name in dpo.loss]
        known = [value for value in values if value is not None]
        weighted = sum(weight * value for weight, value in zip(dpo.loss_weights, known, strict=False))
        return weighted if len(known) == len(values) and not dpo.use_weighting else None
    if isinstance(dpo, PairLoss) and dpo.use_weighting:
        return None
    if isinstance(dpo, Kto):
        return (wanted * dpo.desirable_weight + (1 - wanted) * dpo.undesirable_weight) / 2
    return _at_zero(dpo.loss[0], dpo)


def _at_zero(loss: str, dpo: Dpo) -> float | None:
    log_2, half_target = math.log(2), 1 / (2 * dpo.beta)
    if loss == "exo_pair":
        assert isinstance(dpo, (ExoPair, Mix))
        assert dpo.label_smoothing is not None
        # Half the sum of log(1/2) - log of the smoothed preference's two probabilities.
        return -log_2 - 0.5 * (math.log1p(-dpo.label_smoothing) + math.log(dpo.label_smoothing))
    values: dict[str, float | None] = {
        "sigmoid": log_2,
        "sigmoid_norm": log_2,
        "hinge": 1.0,
        "ipo": half_target**2,
        "robust": log_2,
        "discopop": (log_2 + 1) / 2,
        "nca_pair": 2 * log_2,
        "bco_pair": 2 * log_2,
        "sppo_hard": 2 * half_target**2,
        "apo_zero": 1.0,
        "apo_down": 1.0,
        "aot": log_2,
        "aot_unpaired": log_2,
        "sft": None,
        "simpo": None,
        "cpo": None,
        "orpo": None,
        "reward": log_2,
        "rloo": None,
    }
    return values[loss]


def check_start_loss(loss: float, dpo: Dpo, dtype: Any, pairs: Sequence[TokenPair] = ()) -> None:
    """Check the loss of dev `pairs` before step 1 against its known value at log-ratios of 0."""
    sides = [bool(ids) for pair in pairs for ids in (pair.chosen_ids, pair.rejected_ids)]
    expected = loss_at_zero(dpo, sum(sides[::2]) / sum(sides) if pairs else 0.5)
    if expected is not None:
        check_value(loss, expected, dpo, dtype)


def check_value(loss: float, expected: float, dpo: Dpo, dtype: Any) -> None:
    """Check a loss before step 1 against its known value."""
    import torch

    # Products of fp32 may be TF32's, which round as 16 bits do.
    exact = dtype == torch.float32 and torch.get_float32_matmul_precision() == "highest"
    tolerance = 0.001 if exact else 0.1
    if not abs(loss - expected) <= tolerance * max(1.0, expected):
        raise Diverged(
            f"before step 1 the {'+'.join(dpo.loss)} loss is {loss:.4f}, must be {expected:.4f} within {tolerance:g}"
        )


def check_gradients_arrive(named_parameters: Iterable[tuple[str, Any]], step: int) -> None:
    """Check that every trainable tensor has a gradient (layers repacked for inference silently give none)."""
    silent = [name for name, parameter in named_parameters if parameter.requires_grad and parameter.grad is None]
    if silent:
        raise Diverged(f"step {step}: {len(silent)} trainable tensors got no gradient, the first: {silent[0]}")


def check_finite(value: float, what: str, step: int, rows: Iterable[str]) -> None:
    """Stop before the optimizer step when a loss or gradient norm is NaN or infinite."""
    if not math.isfinite(value):
        raise Diverged(
            f"step {step}: the {what} is {value}; stopped before the optimizer step, the last checkpoint is good\n"
            f"rows of this step: {', '.join(rows)}"
        )
