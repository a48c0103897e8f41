"""Rows that are a single answer, wanted or not, as logs of thumbs up and down are: how many of each there are."""

from __future__ import annotations

from typing import Any

import numpy as np

from dpo.errors import DataError

# Wanted answers times their weight should be so many times unwanted ones times theirs (KTO, arXiv:2402.01306, eq. 8).
LEAST, MOST = 1.0, 4 / 3


def is_single(lengths: np.ndarray) -> bool:
    """Whether rows of `lengths` (pairs, 3), in tokens, are single answers; raises DataError where some are pairs."""
    single = (lengths[:, 1:] == 0).any(axis=1)
    if single.any() and not single.all():
        raise DataError(
            f"{int(single.sum())} rows are single answers (prompt, completion, label) and {int((~single).sum())} are "
            "pairs\na dataset has one kind: give them to two runs"
        )
    return bool(single.any())


def balance(lengths: np.ndarray) -> dict[str, Any] | None:
    """Of rows to train on: how many are wanted and unwanted, and the weight of the rarer that the paper's rule takes,
    from and to, the other's being 1. None for pairs, which have as many of both."""
    if not is_single(lengths):
        return None
    wanted, unwanted = (int(count) for count in (lengths[:, 1:] > 0).sum(axis=0))
    found: dict[str, Any] = {"wanted": wanted, "unwanted": unwanted}
    if not (wanted and unwanted) or LEAST <= wanted / unwanted <= MOST:
        return found
    if wanted < unwanted:
        name, limits = "desirable_weight", (LEAST * unwanted / wanted, MOST * unwanted / wanted)
    else:
        name, limits = "undesirable_weight", (wanted / unwanted / MOST, wanted / unwanted / LEAST)
    return {**found, "weight": name, "from": limits[0], "to": limits[1]}


def said(found: dict[str, Any] | None) -> list[str]:
    """`balance` as lines."""
    if found is None:
        return []
    line = f"single answers to train on: {found['wanted']} wanted, {found['unwanted']} unwanted"
    if not (found["wanted"] and found["unwanted"]):
        return [f"{line}: without both, what is learned is to say more, or less, of everything"]
    if "weight" not in found:
        return [f"{line}: weights of 1 fit them"]
    return [f"{line}: by KTO's rule dpo.{found['weight']} should be {found['from']:.2f} to {found['to']:.2f}"]
