"""The nearest allowed name, for error messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(name: str, allowed: Iterable[str]) -> str:
    """Return `; nearest: X`, or the allowed names when nothing is near, or nothing when there are too many."""
    names = sorted(allowed)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if close:
        return f"; nearest: {close[0]}"
    return f"; allowed: {', '.join(names)}" if 0 < len(names) <= 12 else ""
