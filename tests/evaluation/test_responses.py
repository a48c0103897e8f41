"""Answers from a file: a turn that says more than its text is named, not shortened."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dpo.errors import DataError
from dpo.evaluation.responses import read_responses


@pytest.mark.parametrize(
    ("turn", "named"),
    [
        ({"content": "Look.", "annotations": [{"url": "x"}]}, r"messages\[1\]\.annotations: a message says more"),
        ({"content": [{"type": "image", "url": "x"}]}, r"messages\[1\]\.content\[0\]: picture, sound or video: image"),
        ({"content": None}, r"messages\[1\]\.content: null"),
    ],
)
def test_a_turn_that_says_more_than_can_be_carried_is_named(tmp_path: Path, turn: dict[str, Any], named: str) -> None:
    turns = [{"role": "user", "content": "Which?"}, {"role": "assistant", **turn}, {"role": "user", "content": "So?"}]
    path = tmp_path / "answers.jsonl"
    path.write_text(json.dumps({"messages": turns, "response": "This."}) + "\n")
    with pytest.raises(DataError, match=named):
        read_responses(path, None, None, (), None)
