"""Tokens of pairs in either layout, and the split of a step's pairs into micro-batches."""

from __future__ import annotations

import heapq
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


def split(
    pairs: Sequence[TokenPair], token_budget: int, engine: str = "packed", at_once: int = 1
) -> list[list[TokenPair]]:
    """Groups of `pairs`, each within `token_budget`; a pair that alone exceeds it is a group of its own. The same
    pairs and budget always give the same groups.

    Where one group is computed at a time they are consecutive and as few as greedy filling gives. Where several are
    (`at_once`), they cost about the same and their number is a multiple of it, as far as there are pairs enough; the
    order of pairs is kept within a group.
    """
    if token_budget < 1:
        raise ValueError(f"token budget must be at least 1, got {token_budget}")
    if at_once > 1:
        return _even(pairs, token_budget, engine, at_once)
    groups: list[list[TokenPair]] = []
    for pair in pairs:
        if groups and cost([*groups[-1], pair], engine) <= token_budget:
            groups[-1].append(pair)
        else:
            groups.append([pair])
    return groups


def _even(pairs: Sequence[TokenPair], token_budget: int, engine: str, at_once: int) -> list[list[TokenPair]]:
    tokens = [packed_tokens([pair]) for pair in pairs]
    heaviest = sorted(range(len(pairs)), key=lambda i: -tokens[i])
    fewest = -(-sum(tokens) // (token_budget * at_once)) * at_once
    for count in range(fewest, len(pairs), at_once):
        groups: list[list[int]] = [[] for _ in range(count)]
        loads = [(0, group) for group in range(count)]
        for i in heaviest:
            load, lightest = heapq.heappop(loads)
            groups[lightest].append(i)
            heapq.heappush(loads, (load + tokens[i], lightest))
        found = [[pairs[i] for i in sorted(group)] for group in groups]
        if all(len(group) == 1 or cost(group, engine) <= token_budget for group in found):
            return found
    # Those that end together start together.
    return [[pairs[i]] for i in heaviest]
