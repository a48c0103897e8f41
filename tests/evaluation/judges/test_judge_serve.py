"""`judge=[llm]` on a real server, `transformers serve`, and on a model loaded here: both the embedded one."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from dpo.config.judges import JudgeModel, JudgeServer, LlmJudge, Protocol, Structured
from dpo.data.pair import Message
from dpo.evaluation.judges.ask import preferences, verdicts
from dpo.evaluation.judges.cache import VerdictCache
from dpo.evaluation.judges.interface import Item, Judge, PairItem, PairJudge, Verdict
from dpo.evaluation.judges.llm import build

EMBEDDED = "embedded:smollm2-135m-instruct"
PAIRS = [
    PairItem("0", (Message("user", "What is the capital of France?"),), "Paris.", "I like turtles very much."),
    PairItem("1", (Message("user", "Name a fruit."),), "blue blue blue", "An apple."),
]
SERVER = JudgeServer(None, None, "OPENAI_API_KEY", Structured.auto, 2, None, 300.0, 0, None, None)


def _settings(server: JudgeServer, explain: bool = False) -> LlmJudge:
    local = JudgeModel(EMBEDDED, "main", None, None, 4)
    return LlmJudge([Protocol.pairs, Protocol.rubric], explain, 0.0, 96, 1, 1, 0, server, local)


def _ask(settings: LlmJudge, cache: Path) -> tuple[list[Verdict], list[Verdict]]:
    pairs, rubric = build(settings)
    assert isinstance(pairs, PairJudge)
    assert isinstance(rubric, Judge)
    items = [Item(p.id, p.prompt, p.first) for p in PAIRS]
    kept = VerdictCache(cache)
    return preferences(pairs, PAIRS, kept), verdicts(rubric, items, kept)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """The base_url of `transformers serve` with the embedded model."""
    for name in ("fastapi", "uvicorn", "openai"):
        pytest.importorskip(name, reason=f"transformers serve needs {name}: pip install 'dpo-train[dev]'")
    from dpo.modeling.embedded import embedded_folder

    folder = embedded_folder("smollm2-135m-instruct")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        str(Path(sys.executable).parent / "transformers"), "serve", str(folder), "--host", "127.0.0.1",
        "--port", str(port), "--device", "cpu", "--dtype", "float32",
    ]  # fmt: skip
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        for _ in range(600):
            assert process.poll() is None, process.stderr.read().decode()[-2000:] if process.stderr else ""
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1):
                    break
            except (urllib.error.URLError, OSError):
                time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(30)


@pytest.mark.slow
@pytest.mark.parametrize("explain", [False, True])
def test_a_real_server_judges(url: str, tmp_path: Path, explain: bool) -> None:
    from dataclasses import replace

    from dpo.modeling.embedded import embedded_folder

    name = str(embedded_folder("smollm2-135m-instruct"))
    server = replace(SERVER, base_url=url, model=name, price_in=1.0, price_out=1.0)
    for found in _ask(_settings(server, explain), tmp_path / "v.sqlite"):
        assert len(found) == 2
        for verdict in found:
            # A small model often writes what is no verdict; then it is said, and paid for, but never guessed.
            assert verdict.cost > 0
            assert name in verdict.provenance
            if verdict.score is None:
                assert verdict.reason.startswith("unreadable reply: ")
            else:
                assert 0 <= verdict.score <= 10


@pytest.mark.slow
def test_the_embedded_model_judges_here_and_always_the_same(tmp_path: Path) -> None:
    first = _ask(_settings(SERVER), tmp_path / "a.sqlite")
    assert [len(found) for found in first] == [2, 2]
    for verdict in (v for found in first for v in found):
        assert verdict.score is not None
    assert all(v.cost == 0 for found in first for v in found)
    assert _ask(_settings(SERVER), tmp_path / "b.sqlite") == first
