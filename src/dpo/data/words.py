"""What counts as a word, for every figure of length there is."""

from __future__ import annotations

import re

WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")


def word_count(text: str) -> int:
    """Words of a text: runs of letters, apostrophes inside included."""
    return len(WORD.findall(text))
