"""The objective: a weighted list of losses on the figures of a batch's completion tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch

from dpo.losses import pairwise
from dpo.losses.completions import length_weights, likelihood_weights, sums
from dpo.losses.divergences import score
from dpo.losses.metrics import metrics

if TYPE_CHECKING:
    from collections.abc import Callable


class TokenFigures(Protocol):
    """[N] figures of completion tokens under the policy; only `log_probs` has a gradient."""

    @property
    def log_probs(self) -> torch.Tensor:
        """Of each token, nats."""

    @property
    def entropy(self) -> torch.Tensor | None:
        """Of the distribution each token was drawn from, nats."""

    @property
    def log_sum_sq_probs(self) -> torch.Tensor | None:
        """log sum_v p(v)^2; only read where pairs are weighted."""

    @property
    def mean_logits(self) -> torch.Tensor | None:
        """Over the vocabulary."""

    @property
    def is_top1(self) -> torch.Tensor | None:
        """Whether no other token was likelier."""


@dataclass(frozen=True)
class Compared:
    """B pairs as the losses see them: [B] tensors, log-probs in nats summed over (weighted) tokens."""

    chosen: torch.Tensor
    rejected: torch.Tensor
    ref_chosen: torch.Tensor
    ref_rejected: torch.Tensor
    chosen_likelihood: torch.Tensor
    """Log-probs of chosen with all tokens alike."""
    lengths: torch.Tensor
    """[B, 2] tokens of (chosen, rejected)."""

    @property
    def chosen_ratio(self) -> torch.Tensor:
        """[B] log-ratio of chosen."""
        return self.chosen - self.ref_chosen

    @property
    def rejected_ratio(self) -> torch.Tensor:
        """[B] log-ratio of rejected."""
        return self.rejected - self.ref_rejected


@dataclass(frozen=True)
class Objective:
    """What is minimized, under TRL's names. `weights` go with `losses`."""

    losses: tuple[str, ...]
    beta: float
    weights: tuple[float, ...] = ()
    label_smoothing: float = 0.0
    discopop_tau: float = 0.05
    f_divergence_type: str = "reverse_kl"
    f_alpha_divergence_coef: float = 0.5
    ld_alpha: float | None = None
    use_weighting: bool = False
    soft_labels: bool = False

    @property
    def needs(self) -> tuple[str, ...]:
        """Names of the `TokenFigures` that loss and metrics read."""
        plain = ("log_probs", "entropy", "mean_logits", "is_top1")
        return (*plain, "log_sum_sq_probs") if self.use_weighting else plain

    def __call__(
        self,
        figures: TokenFigures,
        lengths: Sequence[tuple[int, int]],
        reference: torch.Tensor,
        strengths: torch.Tensor | None = None,
        sft_share: float = 1.0,
    ) -> tuple[torch.Tensor, dict[str, float]]:
        """(loss with its graph, metrics under TRL's names) of B pairs.

        Args:
            figures: of N tokens: chosen of pair 0, rejected of pair 0, chosen of pair 1, ...
            lengths: (chosen, rejected) tokens of each pair.
            reference: [B, 2] summed log-probs of the reference, with `ld_alpha` when there is one.
            strengths: [B] soft labels, where the objective has them.
            sft_share: what `sft` counts in a part of a step, see `sft_share`.
        """
        count = torch.tensor(lengths, device=figures.log_probs.device)
        pairs = self.compared(figures.log_probs, lengths, count, reference)
        weights = None
        if self.use_weighting:
            assert figures.log_sum_sq_probs is not None
            weights = likelihood_weights(figures.log_probs, figures.log_sum_sq_probs, count.view(-1))
        total = figures.log_probs.new_zeros(())
        for name, weight in zip(self.losses, self.weights or (1.0,) * len(self.losses), strict=True):
            values = self.per_pair(name, pairs, strengths)
            if weights is not None:
                values = values * weights
            total = total + values.mean() * (weight * sft_share if name == "sft" else weight)
        found = metrics(figures, pairs, self.beta)
        return total, found

    def compared(
        self, log_probs: torch.Tensor, lengths: Sequence[tuple[int, int]], count: torch.Tensor, reference: torch.Tensor
    ) -> Compared:
        """The pairs behind [N] log-probs; `count` is `lengths` as [B, 2] on their device."""
        plain = sums(log_probs, count.view(-1))
        summed = plain
        if self.ld_alpha is not None:
            summed = sums(log_probs * length_weights(lengths, self.ld_alpha, log_probs), count.view(-1))
        return Compared(summed[:, 0], summed[:, 1], reference[:, 0], reference[:, 1], plain[:, 0], count)

    def per_pair(self, name: str, pairs: Compared, strengths: torch.Tensor | None = None) -> torch.Tensor:
        """[B] values of the loss called `name`; raises KeyError for one that is not here."""
        if name == "sigmoid" and self.soft_labels:
            assert strengths is not None
            return pairwise.soft_sigmoid(self._margin(pairs), self.beta, strengths)
        return LOSSES[name](self, pairs)

    def _scores(self, pairs: Compared) -> tuple[torch.Tensor, torch.Tensor]:
        kind, alpha = self.f_divergence_type, self.f_alpha_divergence_coef
        return score(pairs.chosen_ratio, kind, alpha), score(pairs.rejected_ratio, kind, alpha)

    def _margin(self, pairs: Compared) -> torch.Tensor:
        chosen, rejected = self._scores(pairs)
        return chosen - rejected

    def _margin_per_token(self, pairs: Compared) -> torch.Tensor:
        chosen, rejected = self._scores(pairs)
        return chosen / pairs.lengths[:, 0] - rejected / pairs.lengths[:, 1]


LOSSES: dict[str, Callable[[Objective, Compared], torch.Tensor]] = {
    "sigmoid": lambda o, p: pairwise.sigmoid(o._margin(p), o.beta),
    "sigmoid_norm": lambda o, p: pairwise.sigmoid_norm(o._margin_per_token(p), o.beta),
    "hinge": lambda o, p: pairwise.hinge(o._margin(p), o.beta),
    "ipo": lambda o, p: pairwise.ipo(o._margin_per_token(p), o.beta),
    "exo_pair": lambda o, p: pairwise.exo_pair(o._margin(p), o.beta, o.label_smoothing),
    "robust": lambda o, p: pairwise.robust(o._margin(p), o.beta, o.label_smoothing),
    "discopop": lambda o, p: pairwise.discopop(o._margin(p), o.beta, o.discopop_tau),
    "nca_pair": lambda o, p: pairwise.nca_pair(p.chosen_ratio, p.rejected_ratio, o.beta),
    "bco_pair": lambda o, p: pairwise.bco_pair(p.chosen_ratio, p.rejected_ratio, o.beta),
    "sppo_hard": lambda o, p: pairwise.sppo_hard(p.chosen_ratio, p.rejected_ratio, o.beta),
    "apo_zero": lambda o, p: pairwise.apo_zero(p.chosen_ratio, p.rejected_ratio, o.beta),
    "apo_down": lambda o, p: pairwise.apo_down(p.chosen_ratio, p.rejected_ratio, o.beta),
    "aot": lambda o, p: pairwise.aot(p.chosen - p.rejected, p.ref_chosen - p.ref_rejected, o.beta, o.label_smoothing),
    "aot_unpaired": lambda o, p: pairwise.aot_unpaired(p.chosen_ratio, p.rejected_ratio, o.beta, o.label_smoothing),
    "sft": lambda o, p: pairwise.sft(p.chosen_likelihood, p.lengths[:, 0]),
}
"""TRL's name of a loss -> its value per pair."""

WHOLE_STEP = frozenset({"aot", "aot_unpaired"})
"""Losses that sort their batch, so that a step has to stay in one part."""


def sft_share(part: Sequence[int], step: Sequence[int]) -> float:
    """What `sft` counts in a part of a step that counts by its share of the pairs.

    Other losses are means over pairs. `sft` is a mean over the chosen tokens of a whole step, so it should count by
    the part's share of those.

    Args:
        part, step: chosen tokens of each pair of the part, and of the step.
    """
    return (sum(part) / sum(step)) / (len(part) / len(step))
