"""The two sides of an evaluation: the trained policy and the unaligned baseline it started from."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpo.config.lora import FullTraining
from dpo.config.schema import Config
from dpo.modeling.adapter import adapter_fingerprint
from dpo.modeling.policy import REFERENCE, base_of, baseline, load_base, load_trained
from dpo.modeling.tokenizer import stop_tokens
from dpo.records.run import read_record

POLICY, BASELINE = "policy", "baseline"
SIDES = (POLICY, BASELINE)


@dataclass
class Sides:
    """Policy and baseline. With an adapter they are one model; the baseline is the adapter it started from, or none."""

    policy: Any
    baseline: Any
    tokenizer: Any
    config: Config
    base: str
    adapter: str | None
    """Fingerprints of what the baseline was loaded from: the base, and the adapter that training started from."""
    end_id: int | None = None
    """The token that training taught to end an answer, where the run recorded one."""

    @contextlib.contextmanager
    def use(self, side: str) -> Iterator[Any]:
        """The model of a side, for the time of the block."""
        if side == POLICY:
            yield self.policy
        elif self.baseline is self.policy:
            with baseline(self.policy) as model:
                yield model
        else:
            yield self.baseline

    @property
    def device(self) -> Any:
        """Where both sides compute."""
        return next(self.policy.parameters()).device

    @property
    def stop_ids(self) -> set[int]:
        """Tokens that end a turn: the trained one, the tokenizer's and those of the model's generation settings."""
        return stop_tokens(self.policy, self.tokenizer, self.end_id)

    @property
    def turn_end(self) -> int:
        """The one of `stop_ids` that a finished answer ends with."""
        return min(self.stop_ids) if self.end_id is None else self.end_id


def load_sides(run: Path, compute: Any = None, quantized: bool = True) -> Sides:
    """Load both sides of a finished run; raises CheckpointError when it has no final weights.

    `compute` (a modeling.device.Compute) and `quantized` as for `modeling.policy.load_trained`.
    """
    from dpo.engine.lean_linear import keep_dequantized
    from dpo.engine.memory import free_memory
    from dpo.engine.packed_forward import install
    from dpo.modeling.device import choose_compute

    policy, tokenizer, config = load_trained(run, compute, quantized)
    baseline = policy
    base = base_of(run, config)
    if isinstance(config.lora, FullTraining):
        compute = compute or choose_compute(config.hardware.device, config.hardware.precision)
        baseline = load_base(base, None, compute, config.hardware.attention).eval()
        install(baseline)
    adapter = None if config.model.adapter is None else adapter_fingerprint(run / REFERENCE)
    # Scoring shares each prompt between chosen and rejected where the model is verified for it; else it pads.
    if install(policy) is None:
        # Each token of an answer reads every weight once more.
        keep_dequantized(policy, policy.dtype, free_memory(policy.device))
    sides = Sides(policy, baseline, tokenizer, config, base.fingerprint, adapter, read_record(run).get("end_of_turn"))
    for model in (policy, baseline):
        # For who generates with transformers' own loop: lm-eval.
        model.generation_config.eos_token_id = sorted(sides.stop_ids)
    return sides
