"""Rewards of both answers of pairs: a head of one output on the state of each answer's last token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from dpo.engine import attention
from dpo.engine.budget import cost, split
from dpo.engine.collate import layout as lay_out
from dpo.engine.collate import pad
from dpo.engine.support import unwrapped
from dpo.modeling.modes import scoring_mode

if TYPE_CHECKING:
    from dpo.data.pair import TokenPair
    from dpo.engine.layout import PackedLayout

REWARDS = ("rewards",)
"""What the packed forward is asked for in place of figures of tokens."""


def packed_rewards(model: Any, part: Sequence[TokenPair]) -> torch.Tensor:
    """[B, 2] fp32 rewards of (chosen, rejected), each prompt computed once."""
    packed = lay_out(part).to(_device(model))
    found: torch.Tensor = model(input_ids=packed.token_ids, packed=packed, figures=REWARDS)
    return found


def padded_rewards(model: Any, part: Sequence[TokenPair]) -> torch.Tensor:
    """The same on padded rows; where an answer ends is told by its length, not by what the padding looks like."""
    batch, base = pad(part, pad_id=0), unwrapped(model)
    device = _device(model)
    hidden = base.base_model(
        input_ids=batch["input_ids"].to(device), attention_mask=batch["attention_mask"].to(device), use_cache=False
    ).last_hidden_state
    last = batch["attention_mask"].sum(dim=1).to(device) - 1
    states = hidden[torch.arange(len(last), device=device), last]
    return _head(base, states).view(2, len(part)).T


def answer_rewards(base: Any, layout: PackedLayout) -> torch.Tensor:
    """[B, 2] of a layout on the model's device; a side that is not there has the reward of the prompt alone."""
    hidden = base.base_model(
        input_ids=layout.token_ids,
        position_ids=layout.position_ids,
        attention_mask=attention.no_mask(layout.token_ids.device),
        use_cache=False,
        packed=layout,
    ).last_hidden_state
    ends: list[int] = []
    start = 0
    for prompt, chosen, rejected in layout.lengths:
        ends += [start + prompt + chosen - 1, start + prompt + (chosen + rejected if rejected else 0) - 1]
        start += prompt + chosen + rejected
    states = hidden[0].index_select(0, torch.tensor(ends, device=hidden.device))
    return _head(base, states).view(-1, 2)


def _head(base: Any, states: torch.Tensor) -> torch.Tensor:
    with torch.autocast(states.device.type, enabled=False):
        found: torch.Tensor = base.score(states.float())
    return found[:, 0]


def rewards_of(model: torch.nn.Module, pairs: Sequence[TokenPair], token_budget: int) -> list[tuple[float, float]]:
    """Rewards of (chosen, rejected) of every pair, in their order, without gradients; packed where that is installed.

    Args:
        token_budget: most tokens a forward, see `budget.split`.
    """
    from dpo.engine.packed_forward import installed

    packed = installed(model)
    engine = "packed" if packed else "plain"
    order = sorted(range(len(pairs)), key=lambda i: cost([pairs[i]], "packed"), reverse=True)
    found: list[tuple[float, float]] = []
    with scoring_mode(model), torch.no_grad():
        for group in split([pairs[i] for i in order], token_budget, engine):
            rewards = packed_rewards(model, group) if packed else padded_rewards(model, group)
            found += [(chosen, rejected) for chosen, rejected in rewards.tolist()]
    in_order = dict(zip(order, found, strict=True))
    return [in_order[i] for i in range(len(pairs))]


def _device(model: Any) -> torch.device:
    device: torch.device = next(model.parameters()).device
    return device
