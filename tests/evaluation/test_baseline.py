"""What evaluations of runs on one base share: the baseline is scored and drawn once, and comes back the same."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from asked import asked

from dpo.caches.folder import cache_folder
from dpo.evaluation import measure as measuring
from dpo.evaluation.measure import measure
from dpo.evaluation.sides import BASELINE, POLICY
from dpo.records.read import json_lines


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The sides that models have drawn answers for."""
    sides: list[str] = []
    original = measuring.local_drawer

    def spying(*args: Any) -> Callable[..., Iterator[Any]]:
        draw = original(*args)

        def watched(side: str, *rest: Any) -> Iterator[Any]:
            sides.append(side)
            yield from draw(side, *rest)

        return watched

    monkeypatch.setattr(measuring, "local_drawer", spying)
    return sides


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many pairs each call to a model has scored."""
    from dpo.engine import score

    counts: list[int] = []
    original = score.sequence_log_probs

    def spying(model: Any, pairs: Any, *args: Any, **kwargs: Any) -> Any:
        counts.append(len(pairs))
        return original(model, pairs, *args, **kwargs)

    monkeypatch.setattr(score, "sequence_log_probs", spying)
    return counts


def rows(folder: Path, name: str, side: str) -> list[dict[str, Any]]:
    return [row for row in json_lines(folder / f"{name}.jsonl") if row["side"] == side]


def test_the_baseline_is_drawn_and_scored_once(run: Path, drawn: list[str], scored: list[int]) -> None:
    first = measure(asked(run, "evaluation.name=first"))
    assert drawn == [POLICY, BASELINE]
    pairs = len(json_lines(first / "pairs.jsonl"))
    scored.clear()
    second = measure(asked(run, "evaluation.name=second"))
    assert drawn == [POLICY, BASELINE, POLICY]
    assert sum(scored) == pairs > 0  # the policy's
    assert rows(second, "answers", BASELINE) == rows(first, "answers", BASELINE)
    assert json_lines(second / "pairs.jsonl") == json_lines(first / "pairs.jsonl")


@pytest.mark.parametrize(
    "change", ["temperature=0.5", "top_k=7", "max_new_tokens=5", "seed=3", "prompts=5", "samples_per_prompt=3"]
)
def test_another_question_is_drawn_anew(run: Path, drawn: list[str], change: str) -> None:
    measure(asked(run, "evaluation.name=first"))
    measure(asked(run, "evaluation.name=second", f"evaluation.{change}"))
    assert drawn == [POLICY, BASELINE] * 2


def test_damaged_answers_are_drawn_again(run: Path, drawn: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    first = measure(asked(run, "evaluation.name=first"))
    with sqlite3.connect(cache_folder("answers") / "baseline.sqlite") as db:
        db.execute("UPDATE answers SET value = replace(CAST(value AS TEXT), 'a', 'b')")
    second = measure(asked(run, "evaluation.name=second"))
    assert drawn == [POLICY, BASELINE] * 2
    assert "damaged answers dropped" in capsys.readouterr().err
    assert rows(second, "answers", BASELINE) == rows(first, "answers", BASELINE)
