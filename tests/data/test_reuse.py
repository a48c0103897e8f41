"""The same rows, model and dataset settings are a cache hit, whatever else of a run is changed."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
from tokenizer_families import chatml

from dpo.data.prepare import prepare
from dpo.prepare import main as prepare_verb
from dpo.train import main as train_verb

CHANGES = {
    "beta": ["dpo.beta=0.37"],
    "seed": ["seed=99"],
    "rank": ["lora.rank=4"],
    "output folder": ["name=elsewhere"],
    "loss": ["dpo=ipo"],
    "quantization": ["lora=lora"],
    "batches": ["dpo.batch_size=2", "dpo.max_steps=7"],
    "hardware": ["hardware=cpu"],
    "tracking": ["tracking=none"],
}


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_pairs(tmp_path_factory.mktemp("rows") / "pairs.jsonl", 40)


@pytest.mark.parametrize("change", CHANGES)
def test_a_run_with_another_value_finds_its_tokens(
    change: str, rows: Path, tmp_path: Path, compose: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DPO_OUTPUTS", str(tmp_path / "outputs"))
    given = ["dataset=local", f"dataset.path={rows}"]
    first = prepare(compose(*given).dataset, chatml(), tmp_path / "cache")
    monkeypatch.setenv("DPO_OUTPUTS", str(tmp_path / "other"))
    again = prepare(compose(*given, *CHANGES[change]).dataset, chatml(), tmp_path / "cache")
    assert (first.cached, again.cached) == (False, True)
    assert again.fingerprint == first.fingerprint
    assert not prepare(compose(*given, "dataset.max_length=99").dataset, chatml(), tmp_path / "cache").cached


def run(monkeypatch: pytest.MonkeyPatch, verb: Callable[[], None], *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["dpo", *arguments])
    try:
        verb()
    except SystemExit as end:
        assert not end.code, end.code  # noqa: PT017


def test_one_entry_serves_the_verb_and_every_run(
    rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DPO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("DPO_OUTPUTS", str(tmp_path / "outputs"))
    (model := tmp_path / "model").mkdir()
    given = ["model=custom", f"model.path={tiny.make_model(model)}", "dataset=local", f"dataset.path={rows}"]

    def entries() -> dict[str, int]:
        tokens = tmp_path / "cache" / "tokens"
        return {str(path): path.stat().st_mtime_ns for path in tokens.glob("*/*") if path.is_file()}

    run(monkeypatch, prepare_verb, *given, "output=here")
    assert "prepared, fingerprint" in capsys.readouterr().out
    built = entries()
    assert built
    run(monkeypatch, prepare_verb, *given, "output=there")
    assert "found in the cache" in capsys.readouterr().out
    training = [*given, "tracking=none", "hardware=cpu", "dpo.batch_size=4", "dpo.max_steps=1"]
    run(monkeypatch, train_verb, *training)
    monkeypatch.setenv("DPO_OUTPUTS", str(tmp_path / "others"))
    run(monkeypatch, train_verb, *training, "name=second", "seed=5", "dpo.beta=0.4", "lora.rank=4")
    assert len([*tmp_path.glob("outputs/run/*/adapter"), *tmp_path.glob("others/second/*/adapter")]) == 2
    assert entries() == built  # nothing was written again, nothing beside it
