"""`python -m dpo.prepare`, as it is run: the screen, the files it leaves, and how it fails."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from data_options import REPOSITORY
from safetensors.numpy import save_file
from tokenizer_families import chatml

from dpo.prepare import main

OPTIONS = ("dataset=local", "dataset.path=pairs.jsonl", "dataset.on_bad=drop")
HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\x1b[31m"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that passes for a model: this verb reads only its tokenizer."""
    folder = tmp_path_factory.mktemp("model")
    chatml().save_pretrained(folder)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    save_file({"w": np.zeros(1, np.float32)}, folder / "model.safetensors")
    return folder


def arguments(model: Path, folder: Path, *overrides: str) -> list[str]:
    return ["model=custom", f"model.path={model}", f"output={folder}/out", *overrides]


def run(model: Path, folder: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    """The verb as its users run it."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY / "src"), "DPO_CACHE": str(folder / "cache")}
    command = [sys.executable, "-m", "dpo.prepare", *arguments(model, folder, *overrides)]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=240)


def run_here(monkeypatch: pytest.MonkeyPatch, model: Path, folder: Path, *overrides: str) -> int:
    """The verb in this process, where the heavy imports are done already; returns its exit code."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("DPO_CACHE", str(folder / "cache"))
    monkeypatch.setattr(sys, "argv", ["dpo.prepare", *arguments(model, folder, *overrides)])
    try:
        main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


@pytest.fixture(scope="module")
def done(model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    folder = tmp_path_factory.mktemp("run")
    rows = [{"prompt": f"Q{i} {HOSTILE}", "chosen": f"a{i} {HOSTILE}", "rejected": f"b{i}"} for i in range(40)]
    rows[3]["chosen"] = ""
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    first = run(model, folder, *OPTIONS)
    assert first.returncode == 0, first.stderr
    return folder, first


def test_one_screen_says_it_all(done: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    screen = done[1].stdout
    assert screen.startswith("preparing local for "), "before anything is loaded"
    assert len(screen.splitlines()) <= 50
    assert max(len(line) for line in screen.splitlines() if line.startswith(" ")) <= 100, "tables and rows"
    assert f"data.html: {done[0] / 'out'}/local-" in screen, "a line with a path is whole"
    assert re.search(r"rows read\W+40\W+0\W+0", screen)
    assert re.search(r"refused: empty chosen\W+1\W+0\W+0\W+3\b", screen)
    assert "local:train:0" in screen
    assert "⟦<|im_end|>⟧" in screen
    assert "\x1b" not in screen
    assert done[1].stderr == ""


def test_the_pairs_can_be_reviewed(
    done: tuple[Path, subprocess.CompletedProcess[str]],
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run_here(monkeypatch, model, done[0], *OPTIONS, "format=parquet") == 0
    assert "found in the cache" in capsys.readouterr().out
    [folder] = (done[0] / "out").iterdir()
    report = json.loads((folder / "data.json").read_text())
    for split, kept in report["kept"].items():
        lines = [json.loads(line) for line in (folder / f"pairs-{split}.jsonl").read_text().splitlines()]
        table = pyarrow.parquet.read_table(folder / f"pairs-{split}.parquet").to_pylist()
        assert len(lines) == len(table) == kept
        for line, row in zip(lines, table, strict=True):
            assert {key: line[key] for key in row} == row
    assert sum(report["kept"].values()) == 39
    assert report["refused"]["empty chosen"]["ids"] == ["local:train:3"]


def test_the_page_is_whole_and_no_row_can_run_in_it(done: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    [folder] = (done[0] / "out").iterdir()
    html = (folder / "data.html").read_text()
    scripts = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    assert len(scripts) == 1
    digest = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    assert f"default-src 'none'; script-src 'sha256-{digest}'" in html.replace("&#39;", "'")
    outside = html.replace(scripts[0], "")
    assert "<img" not in outside
    assert "alert(1)</script>" not in outside
    assert "&lt;/script&gt;" in outside
    assert not re.search(r"(src|href)=", re.sub(r'&lt;img src=|href="#section-', "", outside))
    plots = json.loads(re.search(r'id="figures">(.*?)</script>', html, re.DOTALL).group(1))
    assert sum(plots["difference"]["data"][0]["y"]) == json.loads((folder / "data.json").read_text())["kept"]["train"]


def test_bad_rows_stop_it_with_their_names(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "Q", "chosen": "a", "rejected": null}\n')
    assert run_here(monkeypatch, model, tmp_path, "dataset=local", "dataset.path=pairs.jsonl") == 3
    assert capsys.readouterr().err.splitlines() == [
        "error: pairs.jsonl:0/rejected: null, line 1 (1 bad of 1 rows; dataset.on_bad=drop drops and counts them)"
    ]
    assert not (tmp_path / "out").exists()


def test_offline_it_ends_with_lines(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_here(monkeypatch, model, tmp_path, "dataset=hh_rlhf", "dataset.limit=10") == 8
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("error: Anthropic/hh-rlhf: ")
    assert len(lines) <= 3


def test_config_errors_load_nothing_heavy(tmp_path: Path) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "dpo.prepare", "dataset.max_lenght=3"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY / "src")}
    got = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert got.returncode == 2
    imported = set(re.findall(r"^import time:.*\|\s*(\S+)$", got.stderr, re.MULTILINE))
    assert "hydra" in imported
    assert not imported & {"torch", "transformers", "tokenizers", "datasets", "pyarrow", "numpy"}
    assert "error: dataset.max_lenght: unknown key; nearest: dataset.max_length" in got.stderr
