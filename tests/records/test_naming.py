"""Every verb takes a run's folder, the name `status` prints, the end of it, or nothing for the newest one."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any

import pytest

from dpo.errors import ConfigError
from dpo.records import naming
from dpo.records.files import write_json, write_sealed


def _run(folder: Path, age: float = 0.0, status: str = "complete") -> Path:
    folder.mkdir(parents=True)
    write_sealed(folder / "run.json", {"status": status, "reason": None, "step": 1, "max_steps": 1, "parent": None})
    os.utime(folder / "run.json", (1e9 - age, 1e9 - age))
    return folder


@pytest.fixture
def outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two runs, a failed newer one, and a sweep with a dot and a comma in its jobs' names."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DPO_OUTPUTS", "outputs")
    root = tmp_path / "outputs"
    _run(root / "quickstart" / "20260101-000000-aaaaaaaaaa", 20)
    _run(root / "run" / "20260102-000000-bbbbbbbbbb", 10)
    _run(root / "run" / "20260103-000000-cccccccccc", status="failed")
    _run(root / "sweeps" / "s-1" / "beta0.05_rank4-ab12", 30)
    write_json(root / "sweeps" / "s-1" / "sweep.json", {"jobs": []})
    _run(root / "sweeps" / "s-1" / "beta=0.1,rank=8", 31)
    return root


@pytest.mark.parametrize(
    ("named", "found", "said"),
    [
        ("outputs/sweeps/s-1/beta0.05_rank4-ab12", "sweeps/s-1/beta0.05_rank4-ab12", ""),
        ("sweeps/s-1/beta0.05_rank4-ab12", "sweeps/s-1/beta0.05_rank4-ab12", ""),
        ("s-1/beta0.05_rank4-ab12/", "sweeps/s-1/beta0.05_rank4-ab12", "run: "),
        ("20260101-000000-aaaaaaaaaa", "quickstart/20260101-000000-aaaaaaaaaa", "run: "),
        ("quickstart", "quickstart/20260101-000000-aaaaaaaaaa", "newest complete run: "),
        ("outputs/run/20260102-000000-bbbbbbbbbb/adapter", "run/20260102-000000-bbbbbbbbbb", "run: "),
        ("outputs/run/20260103-000000-cccccccccc", "run/20260103-000000-cccccccccc", ""),
        (naming.NEWEST, "run/20260102-000000-bbbbbbbbbb", "newest complete run: "),
    ],
)
def test_a_name_means_one_run(
    outputs: Path, capsys: pytest.CaptureFixture[str], named: str, found: str, said: str
) -> None:
    (outputs / "run" / "20260102-000000-bbbbbbbbbb" / "adapter").mkdir()
    assert naming.run_folder(named).absolute() == outputs / found
    line = capsys.readouterr().err
    assert line.startswith(said)
    assert bool(said) == bool(line)


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ("20260101-000000-aaaaaaaaab", "no such run; nearest: 20260101-000000-aaaaaaaaaa"),
        ("outputs/sweeps/s-1", "a sweep; name one of its jobs, as beta0.05_rank4-ab12"),
        ("twice", "several are called so: a/twice, b/twice; write one whole"),
    ],
)
def test_a_name_that_means_none_or_several_is_refused(outputs: Path, named: str, said: str) -> None:
    _run(outputs / "a" / "twice", 40)
    _run(outputs / "b" / "twice", 41)
    with pytest.raises(ConfigError) as refused:
        naming.run_folder(named)
    assert said in str(refused.value)


def test_a_sweep_is_named_alike_where_one_is_taken(outputs: Path) -> None:
    for named in ("outputs/sweeps/s-1", "sweeps/s-1", "s-1"):
        assert naming.run_folder(named, sweeps=True).absolute() == outputs / "sweeps" / "s-1"


VERBS = ("evaluate", "judge", "report", "chat", "export", "compare")


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("word", [None, "s-1/beta0.05_rank4-ab12", "outputs/sweeps/s-1/beta=0.1,rank=8"])
def test_every_verb_names_runs_alike(
    outputs: Path, monkeypatch: pytest.MonkeyPatch, verb: str, word: str | None
) -> None:
    """A word with a dot or an equals sign in it is a path where there is one, and adds no other run."""
    seen: list[tuple[str, Any]] = []

    def stop(named: str, key: str = "run", sweeps: bool = False) -> Path:
        seen.append((key, named))
        raise ConfigError("seen")

    monkeypatch.setattr(naming, "run_folder", stop)
    monkeypatch.setattr("sys.argv", [f"dpo-train {verb}", *([word] if word else [])])
    with pytest.raises(SystemExit):
        importlib.import_module(f"dpo.{verb}").main()
    assert seen == [("runs" if verb == "compare" else "run", word or naming.NEWEST)]


def test_completion_offers_names_and_folders(
    outputs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from dpo.command.completion import _runs

    assert _runs("run", "run=quick") == ["run=quickstart/20260101-000000-aaaaaaaaaa"]
    assert _runs("run", "outputs/swe") == ["outputs/sweeps/"]
    assert _runs("runs", "sweeps/s-1") == [
        f"sweeps/s-1{tail}" for tail in ("/beta0.05_rank4-ab12", "/beta=0.1,rank=8", "")
    ]
    assert _runs(None, "outputs") == _runs("run", "name=x") == []
