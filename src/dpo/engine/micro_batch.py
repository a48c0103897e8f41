"""One micro-batch of a step: the loss of its pairs with a graph behind it, and their figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from dpo.engine.collate import layout, pad, padded_index, padded_prompt_index
from dpo.engine.head import TokenStatistics
from dpo.losses.completions import sums
from dpo.losses.objective import Objective, sft_share, side_shares

if TYPE_CHECKING:
    from dpo.data.pair import TokenPair

Reference = Mapping[str, tuple[float, float]]
"""Pair id -> summed (chosen, rejected) log-probs of the reference; empty where the loss has none."""
Computed = tuple[torch.Tensor, dict[str, float]]
"""(mean loss with its graph, TRL's metrics)."""


@dataclass(frozen=True)
class Whole:
    """What a part is a part of: the pairs of a step (or of an evaluation), and what is settled over all of them."""

    pairs: Sequence[TokenPair]
    kl: float = 0.0
    """Estimate of the divergence from the reference, for losses measured from it."""


PartLoss = Callable[[Any, Sequence["TokenPair"], Whole, Reference], Computed]
"""(model, part, the whole it is a part of, reference) -> what was computed."""
Figures = Callable[[Any, Sequence["TokenPair"], tuple[str, ...], bool], tuple[TokenStatistics, TokenStatistics | None]]
"""(model, part, names, prompts) -> [N] figures of its completion tokens; with `prompts` also of all prompt tokens but
each first."""


@dataclass(frozen=True)
class Part:
    """One micro-batch of a step, computed."""

    loss: torch.Tensor
    """Mean over its pairs, with its graph."""
    figures: dict[str, float]
    """TRL's metrics and the loss."""
    counted: int
    """Pairs it counts for in the means of a step."""


def own_loss(objective: Objective, forward: Figures) -> PartLoss:
    """`objective` on the figures of a forward, for any number of threads."""

    def compute(model: Any, part: Sequence[TokenPair], whole: Whole, reference: Reference) -> Computed:
        need = objective.entry
        figures, of_prompts = forward(model, part, objective.needs, need.of_prompts)
        device = figures.log_probs.device
        known = [[*reference[pair.id], pair.strength] if need.reference else [0.0, 0.0, 1.0] for pair in part]
        given = torch.tensor(known, dtype=torch.float32, device=device)
        prompts = None
        if of_prompts is not None:
            count = torch.tensor([len(pair.prompt_ids) - 1 for pair in part], device=device)
            prompts = sums(of_prompts.log_probs, count, sides=1)[:, 0], count
        return objective(
            figures,
            _lengths(part),
            given[:, :2],
            given[:, 2] if objective.soft_labels else None,
            1.0 if need.examples else share_of_step(part, whole.pairs, need.of_prompts),
            prompts,
            whole.kl,
            side_shares(_lengths(part), _lengths(whole.pairs)) if need.examples else None,
        )

    return compute


def packed_loss(objective: Objective) -> PartLoss:
    """`objective` on the packed forward."""
    return own_loss(objective, packed_figures)


def packed_figures(
    model: Any, part: Sequence[TokenPair], names: tuple[str, ...], prompts: bool = False
) -> tuple[TokenStatistics, TokenStatistics | None]:
    """By the packed forward, see `Figures`."""
    packed = layout(part, prompts).to(_device(model))
    figures: TokenStatistics = model(input_ids=packed.token_ids, packed=packed, figures=names)
    if not prompts:
        return figures, None
    count = sum(map(sum, packed.counted))
    return _cut(figures, slice(count)), _cut(figures, slice(count, None))


def padded_figures(
    model: Any, part: Sequence[TokenPair], names: tuple[str, ...], prompts: bool = False
) -> tuple[TokenStatistics, TokenStatistics | None]:
    """By TRL's own forward on its padded batch, see `Figures`."""
    batch = {name: tensor.to(_device(model)) for name, tensor in pad(part, pad_id=0).items()}
    shown = batch.pop("completion_mask")
    if prompts:
        shown = batch["attention_mask"]
    labels = batch["input_ids"].masked_fill(shown == 0, -100)
    output = model(**batch, labels=labels, use_cache=False, fused_lm_head=True)
    columns = labels.shape[1]

    def at(index: torch.Tensor) -> TokenStatistics:
        index = index.to(labels.device)
        found: dict[str, Any] = {name: getattr(output, name).reshape(-1).index_select(0, index) for name in names}
        return TokenStatistics(**{**dict.fromkeys(TokenStatistics._fields), **found})

    return at(padded_index(part, columns)), at(padded_prompt_index(part, columns)) if prompts else None


def share_of_step(part: Sequence[TokenPair], step: Sequence[TokenPair], of_prompts: bool = False) -> float:
    """What the likelihood of chosen (and of prompts) of `part` counts for in that of `step`, see `sft_share`."""
    return sft_share(*([p.counted[0] + of_prompts * (len(p.prompt_ids) - 1) for p in of] for of in (part, step)))


def _lengths(pairs: Sequence[TokenPair]) -> list[tuple[int, int]]:
    return [pair.counted for pair in pairs]


def _cut(figures: TokenStatistics, where: slice) -> TokenStatistics:
    found: dict[str, Any] = {
        name: None if values is None else values[where] for name, values in figures._asdict().items()
    }
    return TokenStatistics(**found)


def _device(model: Any) -> torch.device:
    device: torch.device = next(model.parameters()).device
    return device
