"""What evaluations of runs on one base share: the baseline is scored and drawn once, and comes back the same."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
from asked import asked

from dpo.caches.folder import cache_folder
from dpo.errors import CheckpointError
from dpo.evaluation import measure as measuring
from dpo.evaluation.baseline import baseline_context
from dpo.evaluation.measure import measure
from dpo.evaluation.sides import BASELINE, POLICY, load_sides
from dpo.records.files import write_sealed
from dpo.records.read import json_lines
from dpo.records.run import read_record
from dpo.train import train


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
    from dpo.engine import log_probs

    counts: list[int] = []
    original = log_probs.sequence_log_probs

    def spying(model: Any, pairs: Any, *args: Any, **kwargs: Any) -> Any:
        counts.append(len(pairs))
        return original(model, pairs, *args, **kwargs)

    monkeypatch.setattr(log_probs, "sequence_log_probs", spying)
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


def test_another_base_at_the_same_path_takes_nothing_from_the_caches_of_the_old_one(
    compose: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    monkeypatch.setenv("DPO_OUTPUTS", str(tmp_path / "outputs"))
    monkeypatch.setenv("DPO_CACHE", str(tmp_path / "cache"))
    model, pairs = tiny.make_model(tmp_path / "model"), tiny.make_pairs(tmp_path / "pairs.jsonl", 40)
    words = ["model=custom", f"model.path={model}", "dataset=local", f"dataset.path={pairs}", "tracking=none"]
    words += ["dpo.max_steps=1", "dpo.batch_size=2", "dpo.eval_every=0", "dataset.test_fraction=0.4", "hardware=cpu"]
    config = compose(*words, "resume=never")
    first = train(config)
    before = baseline_context(load_sides(first))
    assert "reference: 0 pairs from the cache" in capsys.readouterr().out
    train(config)
    assert ", 0 computed" in capsys.readouterr().out
    other = AutoModelForCausalLM.from_pretrained(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter += 5e-4 * torch.randn_like(parameter)
    other.save_pretrained(model)
    second = train(config)
    assert "reference: 0 pairs from the cache" in capsys.readouterr().out
    assert baseline_context(load_sides(second)) != before
    with pytest.raises(CheckpointError, match="its base was"):
        measure(asked(first))


def test_the_caches_are_asked_by_what_was_loaded_and_not_by_what_a_record_says(run: Path) -> None:
    before = baseline_context(load_sides(run))
    record = read_record(run)
    record["fingerprints"]["adapter"] = "0" * 16
    write_sealed(run / "run.json", record)
    assert baseline_context(load_sides(run)) == before
