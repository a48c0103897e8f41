"""The objective: a weighted list of losses on the figures of a batch's completion tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from dpo.losses import pairwise
from dpo.losses.completions import length_weights, likelihood_weights, sums
from dpo.losses.divergences import score
from dpo.losses.metrics import metrics
from dpo.losses.table import LOSSES, Loss


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
    kl: torch.Tensor
    """[] the estimate of a whole step, for losses that are measured from it; else 0."""

    @property
    def per_token(self) -> tuple[torch.Tensor, torch.Tensor]:
        """[B] log-probs of (chosen, rejected), each averaged over its tokens."""
        return self.chosen / self.lengths[:, 0], self.rejected / self.lengths[:, 1]

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
    gamma_ratio: float = 0.5
    cpo_alpha: float = 1.0
    desirable_weight: float = 1.0
    undesirable_weight: float = 1.0

    @property
    def entry(self) -> Loss:
        """What the losses need, which those of a list have in common."""
        return LOSSES[self.losses[0]]

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
        prompts: tuple[torch.Tensor, torch.Tensor] | None = None,
        kl: float = 0.0,
        shares: tuple[float, float] | None = None,
    ) -> tuple[torch.Tensor, dict[str, float]]:
        """(loss with its graph, metrics under TRL's names) of B pairs.

        Args:
            figures: of N tokens: chosen of pair 0, rejected of pair 0, chosen of pair 1, ...
            lengths: (chosen, rejected) tokens of each pair.
            reference: [B, 2] summed log-probs of the reference, with `ld_alpha` when there is one; read only where
                the losses have a reference.
            strengths: [B] soft labels, where the objective has them.
            sft_share: what likelihood counts in a part of a step, see `sft_share`.
            prompts: of [B] prompts, summed log-probs and number of all tokens but the first; where the likelihood
                that is added covers them.
            kl: see `Compared.kl`.
            shares: what figures of chosen and of rejected count, see `side_shares`; None where no side is missing.
        """
        count = torch.tensor(lengths, device=figures.log_probs.device)
        pairs = self.compared(figures.log_probs, lengths, count, reference, kl)
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
        more: dict[str, torch.Tensor] = {}
        if self.entry.likelihood is not None:
            summed, tokens = pairs.chosen_likelihood, count[:, 0]
            if prompts is not None:
                summed, tokens = summed + prompts[0], tokens + prompts[1]
            more["nll_loss"] = pairwise.sft(summed, tokens)[0] * sft_share
            total = total + self.entry.likelihood(self) * more["nll_loss"]
        more |= self.entry.own_metrics(self, pairs)
        return total, metrics(figures, pairs, self.rewards(pairs), more, self.entry.averages, shares)

    def rewards(self, pairs: Compared) -> tuple[torch.Tensor, torch.Tensor]:
        """[B] implicit rewards of (chosen, rejected): beta times what the loss compares."""
        if self.entry.reference:
            return self.beta * pairs.chosen_ratio, self.beta * pairs.rejected_ratio
        chosen, rejected = pairs.per_token if self.entry.averages else (pairs.chosen, pairs.rejected)
        return self.beta * chosen, self.beta * rejected

    def compared(
        self,
        log_probs: torch.Tensor,
        lengths: Sequence[tuple[int, int]],
        count: torch.Tensor,
        reference: torch.Tensor,
        kl: float = 0.0,
    ) -> Compared:
        """The pairs behind [N] log-probs; `count` is `lengths` as [B, 2] on their device."""
        plain = sums(log_probs, count.view(-1))
        summed = plain
        if self.ld_alpha is not None:
            summed = sums(log_probs * length_weights(lengths, self.ld_alpha, log_probs), count.view(-1))
        return Compared(
            summed[:, 0], summed[:, 1], reference[:, 0], reference[:, 1], plain[:, 0], count, log_probs.new_tensor(kl)
        )

    def per_pair(self, name: str, pairs: Compared, strengths: torch.Tensor | None = None) -> torch.Tensor:
        """[B] values of the loss called `name`; raises KeyError for one that is not here."""
        if name == "sigmoid" and self.soft_labels:
            assert strengths is not None
            return pairwise.soft_sigmoid(self.margin(pairs), self.beta, strengths)
        return LOSSES[name].value(self, pairs)

    def scores(self, pairs: Compared) -> tuple[torch.Tensor, torch.Tensor]:
        """[B] scores of (chosen, rejected), see `divergences`."""
        kind, alpha = self.f_divergence_type, self.f_alpha_divergence_coef
        return score(pairs.chosen_ratio, kind, alpha), score(pairs.rejected_ratio, kind, alpha)

    def margin(self, pairs: Compared) -> torch.Tensor:
        """[B] score of chosen minus score of rejected."""
        chosen, rejected = self.scores(pairs)
        return chosen - rejected

    def margin_per_token(self, pairs: Compared) -> torch.Tensor:
        """[B] the same with each score divided by its tokens."""
        chosen, rejected = self.scores(pairs)
        return chosen / pairs.lengths[:, 0] - rejected / pairs.lengths[:, 1]


def sft_share(part: Sequence[int], step: Sequence[int]) -> float:
    """What `sft` counts in a part of a step that counts by its share of the pairs.

    Other losses are means over pairs. Likelihood is a mean over the chosen tokens of a whole step, so it should count
    by the part's share of those.

    Args:
        part, step: tokens of each pair of the part, and of the step, that the likelihood is of.
    """
    return (sum(part) / sum(step)) / (len(part) / len(step))


def side_shares(part: Sequence[tuple[int, int]], step: Sequence[tuple[int, int]]) -> tuple[float, float] | None:
    """What means over the chosen, and over the rejected, answers of a part count in a step that weighs parts by their
    pairs; None where every pair of the step has both.

    Args:
        part, step: (chosen, rejected) tokens of each pair, 0 where there is no such answer.
    """
    if all(map(all, step)):
        return None
    chosen, rejected = (
        sum(pair[side] > 0 for pair in part) / max(1, sum(pair[side] > 0 for pair in step)) for side in (0, 1)
    )
    return chosen * len(step) / len(part), rejected * len(step) / len(part)
