"""Tokens of pairs in either layout, and the split of a step's pairs into micro-batches."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dpo.data.pair import TokenPair


def packed_tokens(pairs: Sequence[TokenPair]) -> int:
    """Tokens the packed engine computes on: sum of prompt + chosen + rejected."""
    return sum(len(p.prompt_ids) + len(p.chosen_ids) + len(p.rejected_ids) for p in pairs)


def plain_tokens(pairs: Sequence[TokenPair]) -> int:
    """Tokens the plain engine computes on: 2B rows padded to the longest."""
    if not pairs:
        return 0
    return 2 * len(pairs) * max(len(p.prompt_ids) + max(len(p.chosen_ids), len(p.rejected_ids)) for p in pairs)


def cost(pairs: Sequence[TokenPair], engine: str) -> int:
    """Tokens a micro-batch of `pairs` costs in `engine`, packed or plain."""
    return packed_tokens(pairs) if engine == "packed" else plain_tokens(pairs)


def split(pairs: Sequence[TokenPair], token_budget: int, engine: str = "packed") -> list[list[TokenPair]]:
    """Consecutive groups of `pairs`, each within `token_budget`, as few as greedy filling gives.

    The order of the pairs is kept, and the same pairs and budget always give the same groups. A pair that alone
    exceeds the budget is a group of its own.
    """
    if token_budget < 1:
        raise ValueError(f"token budget must be at least 1, got {token_budget}")
    groups: list[list[TokenPair]] = []
    for pair in pairs:
        if groups and cost([*groups[-1], pair], engine) <= token_budget:
            groups[-1].append(pair)
        else:
            groups.append([pair])
    return groups
