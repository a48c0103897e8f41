"""Budgets: token counts, the split of a step, and the plan from memory."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from packed_models import random_pairs, tiny_model

from dpo.engine.budget import cost, packed_tokens, plain_tokens, split
from dpo.engine.collate import layout, pad
from dpo.engine.memory import bytes_per_token, plan


def test_counts_are_those_of_the_batches() -> None:
    pairs = random_pairs(5)
    batch, packed = pad(pairs, 0), layout(pairs)
    assert plain_tokens(pairs) == batch["input_ids"].numel()
    assert packed_tokens(pairs) == packed.token_ids.numel()
    assert packed.targets.numel() == batch["completion_mask"].sum()


@given(st.integers(1, 30), st.integers(1, 300), st.integers(0, 5), st.sampled_from(["packed", "plain"]))
def test_split_keeps_order_and_budget(count: int, budget: int, seed: int, engine: str) -> None:
    pairs = random_pairs(count, seed)
    groups = split(pairs, budget, engine)
    assert [pair for group in groups for pair in group] == pairs
    assert groups == split(pairs, budget, engine)
    assert all(len(group) == 1 or cost(group, engine) <= budget for group in groups)
    # Greedy: no group could have taken the next pair.
    for group, following in pairwise(groups):
        assert cost([*group, following[0]], engine) > budget


def test_a_budget_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        split(random_pairs(2), 0)


def test_plan_follows_memory() -> None:
    model, pairs = tiny_model("llama"), random_pairs(8)
    longest = max(packed_tokens([pair]) for pair in pairs)

    def made(free: int, **fixed: object) -> tuple[int, bool]:
        result = plan(model, pairs, engine="packed", dtype=torch.float32, free=free, **fixed)  # type: ignore[arg-type]
        assert str(result.token_budget) in result.line
        return result.token_budget, result.activation_checkpointing

    without = bytes_per_token(model.config, 4, engine="packed", checkpointing=False, kept_keys=longest // 2)
    assert made(10**12) == (1024, False)
    assert made(2 * without * 600) == (512, False)
    assert made(2 * without * (longest - 1))[1] is True
    assert made(10**12, token_budget=77) == (77, False)
    assert made(10**12, checkpointing=True) == (1024, True)
    assert made(0) == (64, True)


def test_checkpointing_and_packing_are_cheaper_by_the_estimate() -> None:
    config = tiny_model("llama", num_hidden_layers=8).config
    estimate = {
        (engine, checkpointing): bytes_per_token(config, 4, engine=engine, checkpointing=checkpointing)
        for engine in ("packed", "plain")
        for checkpointing in (False, True)
    }
    assert estimate["packed", True] < estimate["packed", False] < estimate["plain", False]
    assert estimate["plain", True] < estimate["plain", False]
