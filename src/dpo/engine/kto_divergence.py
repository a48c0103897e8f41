"""How far the policy has moved from the reference, estimated over the mismatched completions of a step.

KTO (arXiv:2402.01306, section 4.1) measures each example from max(0, mean of log pi(y'|x) - log pi_ref(y'|x)), where y'
is the completion of another prompt of the same step. Which one is decided over the whole step, before it is split over
micro-batches or processes, so that no split changes the estimate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from dpo.data.pair import TokenPair, within
from dpo.losses.completions import sums

if TYPE_CHECKING:
    from dpo.engine.micro_batch import Figures, Reference


def mismatched(step: Sequence[TokenPair], max_length: int) -> list[TokenPair]:
    """Each prompt with the completions of the pair before it; the first with those of the last.

    Over examples in the order of TRL's KTOTrainer (all chosen of a step, then all rejected) that is its rotation by
    one. Completions are cut to `max_length` tokens with their prompt, as there.
    """
    return [mismatch(pair, other, max_length) for pair, other in zip(step, [*step[-1:], *step[:-1]], strict=True)]


def mismatch(pair: TokenPair, other: TokenPair, max_length: int) -> TokenPair:
    """The prompt of `pair` with the completions of `other`."""
    room = max(1, max_length - len(pair.prompt_ids))
    chosen, rejected = other.chosen_ids[:room], other.rejected_ids[:room]
    given = within(other.given[0], room), within(other.given[1], room)
    return TokenPair(f"{pair.id} with {other.id}", pair.prompt_ids, chosen, rejected, given=given)


def examples(pairs: Sequence[TokenPair]) -> int:
    """Completions of `pairs`."""
    return sum(bool(pair.chosen_ids) + bool(pair.rejected_ids) for pair in pairs)


@dataclass(frozen=True)
class Divergence:
    """`forward` gives log-probs; sequences hold at most `max_length` tokens."""

    forward: Figures
    max_length: int

    def total(self, model: Any, part: Sequence[TokenPair], reference: Reference) -> float:
        """Log-ratios of all completions of `part`, which are mismatched, added up; nats."""
        figures, _ = self.forward(model, part, ("log_probs",), False)
        lengths = [length for pair in part for length in pair.counted]
        own = sums(figures.log_probs, torch.tensor(lengths, device=figures.log_probs.device))
        known = torch.tensor([reference[pair.id] for pair in part], dtype=torch.float32, device=own.device)
        return float((own - known).double().sum())
