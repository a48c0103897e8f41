"""Sequence log-probabilities without gradients: for the reference pass and for evaluation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from dpo.engine.budget import cost, split
from dpo.engine.collate import layout as lay_out
from dpo.engine.collate import pad, padded_index
from dpo.engine.packed_forward import completion_statistics, head_statistics, installed
from dpo.engine.support import unwrapped
from dpo.engine.workers import Workers
from dpo.losses.completions import length_weights, sums
from dpo.modeling.modes import scoring_mode

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dpo.data.pair import TokenPair


def sequence_log_probs(
    model: torch.nn.Module,
    pairs: Sequence[TokenPair],
    token_budget: int,
    progress: Callable[[int], None] | None = None,
    ld_alpha: float | None = None,
) -> list[tuple[float, float]]:
    """(log p(chosen | prompt), log p(rejected | prompt)) in nats for every pair, in their order.

    Packed where the packed forward is installed, padded otherwise. The model's train or eval mode is as before
    afterwards, and adapters are used as they stand (disable them around the call for a reference). Each figure is
    the fp32 sum over its completion tokens.

    Args:
        token_budget: most tokens a forward, see `budget.split`.
        progress: called with the number of pairs just done.
        ld_alpha: weight of the tokens beyond the length of the pair's shorter completion; None for 1.
    """
    base = unwrapped(model)
    device: torch.device = next(base.get_input_embeddings().parameters()).device
    packed = installed(model)
    engine = "packed" if packed else "plain"
    # Long pairs share a forward with long ones, so that padding (plain) and masks stay small.
    order = sorted(range(len(pairs)), key=lambda i: cost([pairs[i]], "packed"), reverse=True)
    # Several processes divide the cores among themselves, and may gather spread weights inside a forward.
    alone = packed and device.type == "cpu" and not torch.distributed.is_initialized()
    count = torch.get_num_threads() if alone else 1
    ordered = [pairs[i] for i in order]
    groups = split(ordered, max(1, token_budget // count), engine)
    casts, kind = torch.is_autocast_enabled(device.type), torch.get_autocast_dtype(device.type)

    def score(group: list[TokenPair]) -> list[list[float]]:
        layout = lay_out(group).to(device)
        # A thread of its own knows neither.
        with torch.no_grad(), torch.autocast(device.type, kind, enabled=casts):
            if packed:
                log_probs = completion_statistics(base, layout, ("log_probs",)).log_probs
            else:
                log_probs = _padded_log_probs(base, group, device)
        log_probs = log_probs.cpu()
        lengths = layout.counted
        if ld_alpha is not None:
            log_probs = log_probs * length_weights(lengths, ld_alpha, log_probs)
        scores: list[list[float]] = sums(log_probs, torch.tensor(lengths).view(-1)).tolist()
        return scores

    results: list[tuple[float, float]] = []
    with scoring_mode(model), Workers.of(count) as workers:
        for scores in workers.map(score, groups):
            results += [(chosen, rejected) for chosen, rejected in scores]
            if progress is not None:
                progress(len(scores))
    in_order = dict(zip(order, results, strict=True))
    return [in_order[i] for i in range(len(pairs))]


def _padded_log_probs(base: Any, group: Sequence[TokenPair], device: torch.device) -> torch.Tensor:
    batch = pad(group, pad_id=0)
    layout, index = lay_out(group), padded_index(group, batch["input_ids"].shape[1])
    hidden = base.base_model(
        input_ids=batch["input_ids"].to(device), attention_mask=batch["attention_mask"].to(device), use_cache=False
    ).last_hidden_state
    states = hidden[:, :-1].reshape(-1, hidden.shape[-1]).index_select(0, index.to(device))
    # In the padded layout every completion token has a row of its own.
    layout.target_rows = torch.arange(layout.targets.shape[0])
    return head_statistics(base, states, layout.to(device), ("log_probs",)).log_probs
