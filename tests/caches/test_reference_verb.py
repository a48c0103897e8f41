"""`python -m dpo.cache` as a user runs it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dpo.cache import run
from dpo.caches.reference import ReferenceCache
from dpo.data.pair import TokenPair
from dpo.evaluation.judges.ask import default_cache
from dpo.evaluation.judges.interface import Verdict

SOURCE = Path(__file__).parents[2] / "src"


def cache_verb(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), "DPO_CACHE": str(folder)}
    command = [sys.executable, "-m", "dpo.cache", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


def test_show_then_prune(tmp_path: Path) -> None:
    cache = ReferenceCache(tmp_path / "reference" / "log_probs.sqlite")
    cache.fill([TokenPair("a", [1], [2], [3])], "c" * 64, lambda pairs: [(-1.0, -2.0)])
    shown = cache_verb(tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert "cccccccccccc: 1 pairs" in shown.stdout
    assert "removed 0 pairs" in cache_verb(tmp_path, "prune").stdout
    assert "removed 1 pairs of 1 contexts" in cache_verb(tmp_path, "prune", "days=0").stdout
    assert not cache.contexts()


def test_verdicts_are_shown_and_pruned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DPO_CACHE", str(tmp_path))
    cache = default_cache()
    verdict = Verdict("", 1.0, True, "", 0.0, "a model")
    cache.write("llm", {b"1": verdict, b"2": verdict})
    cache.write("rules", {b"3": verdict})
    run([])
    assert "verdicts of llm: 2\n  verdicts of rules: 1\n" in capsys.readouterr().out
    run(["prune"])
    assert "removed 0 verdicts" in capsys.readouterr().out
    run(["prune", "days=0"])
    assert "removed 3 verdicts" in capsys.readouterr().out
    assert not cache.counts()


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["shwo"], "error: shwo: unknown command"),
        (["prune", "day=3"], "error: day: unknown key of prune"),
        (["prune", "days=soon"], "error: days=soon: not a number"),
        (["prune", "days=-1"], "error: days=-1: must be at least 0"),
        (["show", "days=1"], "error: days: unknown key of show"),
    ],
)
def test_mistakes_get_one_line(tmp_path: Path, arguments: list[str], line: str) -> None:
    result = cache_verb(tmp_path, *arguments)
    assert result.returncode == 2
    assert result.stderr.startswith(line)
    assert len(result.stderr.splitlines()) == 1


def test_no_torch_is_imported() -> None:
    code = "import sys, dpo.cache; sys.exit('torch' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 0
