"""One finding on a run: what its figures say, how serious that is, and the evidence."""

from __future__ import annotations

from dataclasses import dataclass

GOOD, NOTE, WARNING, UNKNOWN = "good", "note", "warning", "unknown"
FEWEST = 20
"""Fewer held-out pairs, prompts or answers let nothing pass for good, or for a verdict."""


@dataclass(frozen=True)
class Finding:
    """One finding: its name, how serious (good, note, warning, unknown), a sentence, and the figures behind it."""

    name: str
    level: str
    words: str
    evidence: tuple[str, ...] = ()
