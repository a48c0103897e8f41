"""A judge's verdict on one answer, in words."""

from __future__ import annotations

from typing import Any


def verdict_word(verdict: dict[str, Any]) -> str:
    """`meets`, `fails brief`, `0.71`, or why it is undecided."""
    if verdict["outcome"] is None:
        return f"undecided, {verdict['reason']}"
    if verdict["passed"] is None:
        return f"{verdict['score']:.2f}"
    return "meets" if verdict["passed"] else f"fails {verdict['reason']}"
