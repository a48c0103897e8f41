"""A builder killed outright at any moment: nothing of it is read, nobody waits for it, and the next run builds anew."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from data_options import dataset
from tokenizer_families import chatml

from dpo.caches import entry
from dpo.data import control_tokens, load, parallel, token_file
from dpo.data import prepare as preparing
from dpo.data.pair_file import PairWriter
from dpo.data.prepare import Prepared, prepare


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    lines = [{"prompt": f"Question {i}?", "chosen": f"good {i}", "rejected": f"no {i}"} for i in range(80)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def prepared(rows: Path, cache: Path) -> Prepared:
    return prepare(dataset("local", path=str(rows)), chatml(), cache)


# Where the builder is struck: just before the n-th call of a function.
MOMENTS: dict[str, tuple[Any, str, int]] = {
    "before the first row": (load, "read_rows", 1),
    "between rows": (PairWriter, "write", 40),
    "before the first token": (preparing, "encode_all", 1),
    "between tokens": (token_file.TokenWriter, "write", 30),
    "between splits": (token_file.TokenWriter, "end_split", 2),
    "before the index": (token_file.TokenWriter, "close", 1),
    "before the report": (preparing, "write_json", 1),
    "before the manifest": (entry, "write_json", 1),
    "before it has its name": (entry.os, "rename", 1),
    "once it has its name": (entry, "sync", 1),
}


def strike(owner: Any, name: str, number: int) -> None:
    """Let the n-th call of `owner.name` in this process be its last."""
    original: Callable[..., Any] = getattr(owner, name)
    calls = 0

    def struck(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)

    setattr(owner, name, struck)


def build_and_die(rows: Path, cache: Path, moment: str) -> None:
    control_tokens.THREADS = False  # the tokenizer's threads did not come along into this process
    strike(*MOMENTS[moment])
    prepared(rows, cache)


def start(target: Callable[..., None], *arguments: Any) -> Any:
    process = multiprocessing.get_context("fork").Process(target=target, args=arguments)
    process.start()
    return process


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_killed_builder_leaves_nothing_half_read(moment: str, rows: Path, tmp_path: Path) -> None:
    expected = prepared(rows, tmp_path / "whole")
    cache = tmp_path / "cache"
    builder = start(build_and_die, rows, cache, moment)
    builder.join(60)
    assert builder.exitcode == -signal.SIGKILL
    named = [path for path in cache.iterdir() if path.is_dir() and not path.name.startswith(".")]
    finished = moment == "once it has its name"
    assert len(named) == finished
    if finished:
        assert entry.damage(named[0]) is None
    again = prepared(rows, cache)
    assert again.cached is finished
    assert (again.fingerprint, again.report) == (expected.fingerprint, expected.report)
    assert list(again.train) == list(expected.train)
    assert sorted(path.suffix for path in cache.iterdir()) == ["", ".lock"]  # what was left behind is gone
    assert prepared(rows, cache).cached


def build_with_workers(rows: Path, cache: Path, pids: Path) -> None:
    control_tokens.THREADS = False
    parallel.WORTH_IT, parallel.BATCH = 10, 8
    os.sched_getaffinity = lambda pid: {0, 1}
    work = parallel._encode

    def slow(*arguments: Any) -> Any:
        (pids / str(os.getpid())).touch()
        time.sleep(60)
        return work(*arguments)

    parallel._encode = slow
    prepared(rows, cache)


def test_workers_of_a_killed_builder_end_and_let_go_of_its_lock(rows: Path, tmp_path: Path) -> None:
    (pids := tmp_path / "pids").mkdir()
    builder = start(build_with_workers, rows, tmp_path / "cache", pids)
    deadline = time.monotonic() + 60
    while len(list(pids.iterdir())) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    builder.kill()
    builder.join()
    # Were the lock still held by a worker, this would wait for ever.
    assert not prepared(rows, tmp_path / "cache").cached
    deadline = time.monotonic() + 60
    while any(_runs(int(path.name)) for path in pids.iterdir()):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
