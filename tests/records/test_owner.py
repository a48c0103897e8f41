"""One owner a run directory: concurrent starts, other machines, damaged records, forked workers."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from dpo.errors import ConfigError
from dpo.records import opening
from dpo.records.files import write_json
from dpo.records.opening import Taken, open_given, open_run
from dpo.records.owner import Lost, Owner
from dpo.records.process import ALIVE_SECONDS, process_mark
from dpo.records.run import Facts, Run, read_record

FACTS = Facts("seed: 0\n", "abc", 0)
_CONTEXT = multiprocessing.get_context("fork")


@pytest.fixture(autouse=True)
def outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DPO_OUTPUTS", str(tmp_path))
    return tmp_path


def opened(resume: str = "auto") -> tuple[Run, bool, list[str]]:
    said: list[str] = []
    run, continued = open_run("run", resume, FACTS, said.append)
    return run, continued, said


def left_behind(**changes: Any) -> Path:
    """A run that was begun and whose process is gone, as far as this one can see."""
    run, _, _ = opened("never")
    assert run.owner is not None
    run.owner.release()
    write_json(run.folder / "run.json", {**run.record, "pid": 2**22 + 1, **changes})
    return run.folder


def _start(barrier: Any, told: Any, how: str) -> None:
    barrier.wait()
    try:
        run, continued = open_given(Path(how), FACTS) if "/" in how else opened(how)[:2]
        told.put((str(run.folder), continued, len(run.record["attempts"])))
    except Exception as error:  # noqa: BLE001 - told to the test
        told.put((type(error).__name__, False, 0))
    barrier.wait()  # nobody lets go before all have looked


def at_once(count: int, how: str) -> list[tuple[str, bool, int]]:
    barrier, told = _CONTEXT.Barrier(count), _CONTEXT.Queue()
    processes = [_CONTEXT.Process(target=_start, args=(barrier, told, how)) for _ in range(count)]
    for process in processes:
        process.start()
    results = [told.get(timeout=60) for _ in range(count)]
    for process in processes:
        process.join(60)
    return results


def test_twelve_starts_at_once_make_twelve_run_directories() -> None:
    results = at_once(12, "never")
    assert len({folder for folder, _, _ in results}) == 12
    for folder, continued, attempts in results:
        assert not continued
        assert attempts == 1
        assert read_record(Path(folder))["status"] == "running"


@pytest.mark.parametrize("how", ["auto", "folder"])
def test_of_several_starts_at_once_one_continues_an_unfinished_run(how: str) -> None:
    folder = left_behind()
    results = at_once(6, "auto" if how == "auto" else str(folder))
    assert [result for result in results if result[1]] == [(str(folder), True, 2)]
    others = {where for where, continued, _ in results if not continued}
    assert others == {"Taken"} if how == "folder" else len(others) == 5


def test_of_two_starts_of_a_sweeps_job_one_is_told_who_has_it(outputs: Path) -> None:
    results = at_once(2, str(outputs / "sweeps" / "job"))
    assert sorted(where for where, _, _ in results) == sorted([str(outputs / "sweeps" / "job"), "Taken"])


def test_a_start_beside_a_living_run_gets_its_own_and_is_told_of_it() -> None:
    first, _, _ = opened()
    write_json(first.folder / "run.json", {**first.record, "pid": os.getppid()})
    second, continued, said = opened()
    assert (second.folder, continued) != (first.folder, True)
    assert "is still running it" in said[0]
    with pytest.raises(ConfigError, match=f"process {os.getppid()} is still running it"):
        opened(str(first.folder))


def test_a_run_that_ended_is_free_and_a_complete_one_is_left_alone() -> None:
    first, _, _ = opened()
    first.finish("interrupted", None, 130)
    second, continued, _ = opened()
    assert (second.folder, continued) == (first.folder, True)
    second.finish("complete", None, 0)
    third, continued, _ = opened()
    assert third.folder != first.folder
    assert not continued
    with pytest.raises(ConfigError, match="complete"):
        opened(str(first.folder))


def test_a_run_of_another_machine_is_believed_by_its_sign_of_life() -> None:
    alive = left_behind(host="elsewhere.example", updated=time.time() - 30)
    other, continued, said = opened()
    assert other.folder != alive
    assert not continued
    assert "elsewhere.example" in said[0]
    assert f"resume={alive}" in said[0]
    with pytest.raises(Taken):
        open_given(alive, FACTS)
    run, continued, _ = opened(str(alive))  # the user's word
    assert (run.folder, continued) == (alive, True)


def test_a_run_of_another_machine_that_fell_silent_is_continued() -> None:
    dead = left_behind(host="elsewhere.example", updated=time.time() - 2 * ALIVE_SECONDS)
    run, continued, _ = opened()
    assert (run.folder, continued) == (dead, True)


def test_who_has_been_taken_over_writes_no_more() -> None:
    run, _, _ = opened()
    run.sign_of_life()
    assert read_record(run.folder)["updated"] > run.record["updated"]
    write_json(run.folder / "run.json", {**run.record, "owner": "another", "host": "elsewhere.example"})
    for write in (run.save, run.sign_of_life):
        with pytest.raises(Lost, match=r"elsewhere\.example"):
            write()
    assert read_record(run.folder)["owner"] == "another"


@pytest.mark.parametrize(
    "text", ["", '{"status": "ru', "[1]", "[" * 100000, '{"status": "running", "attempts": 3}', "null"]
)
def test_a_torn_record_does_not_block_the_next_start(text: str) -> None:
    torn = left_behind()
    (torn / "run.json").write_text(text)
    run, continued, said = opened()
    assert run.folder != torn
    assert not continued
    assert str(torn) in said[0]


def test_a_pipe_for_a_record_blocks_nobody() -> None:
    torn = left_behind()
    (torn / "run.json").unlink()
    os.mkfifo(torn / "run.json")
    run, _, said = opened()
    assert run.folder != torn
    assert "not a file" in said[0]


def test_what_is_in_the_way_of_a_new_run_is_left_alone(outputs: Path) -> None:
    (outputs / "job").mkdir()
    (outputs / "job" / "mine.txt").write_text("x")
    with pytest.raises(ConfigError, match="not a run directory"):
        open_given(outputs / "job", FACTS)
    assert [p.name for p in (outputs / "job").iterdir()] == ["mine.txt"]
    assert not list(outputs.glob(".starting-*"))


def test_a_worker_that_outlives_a_killed_run_does_not_hold_it(tmp_path: Path) -> None:
    folder = left_behind()
    ready, wait = os.pipe(), os.pipe()
    parent = os.fork()
    if parent == 0:
        Owner(folder)
        if os.fork() == 0:
            os.close(wait[1])
            os.write(ready[1], b"x")
            os.read(wait[0], 1)
            os._exit(0)
        os.kill(os.getpid(), 9)
    os.waitpid(parent, 0)
    os.read(ready[0], 1)
    Owner(folder).release()
    os.close(wait[1])


def test_leftovers_go(outputs: Path) -> None:
    folder = left_behind()
    (folder / ".ledger.json.123.tmp").write_text("")
    old = outputs / "run" / ".starting-x"
    old.mkdir()
    os.utime(old, (0, 0))
    run, _, _ = opened()
    assert run.folder == folder
    assert not list(folder.glob(".*.tmp"))
    opened("never")
    assert not old.exists()


def test_ranks_join_the_run_that_their_parent_holds() -> None:
    held, _, _ = opened()
    run, continued = opening.join(held.folder, held.record["owner"], FACTS)
    assert not continued
    assert len(run.record["attempts"]) == 1
    run.finish("complete", None, 0)
    with pytest.raises(Taken):
        opening.join(held.folder, "another", FACTS)
    shutil.rmtree(held.folder)
    assert json.dumps(run.record)


def test_a_claim_outlives_a_clock_that_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    if process_mark(os.getpid()) is None:
        pytest.skip("only Linux tells when a process started by anything but the clock")
    from dpo.caches.claims import Claimant

    with multiprocessing.Pool(1) as pool:
        name = pool.apply(_claim)
        monkeypatch.setattr(psutil.Process, "create_time", lambda self: 12345.0)
        assert Claimant.is_alive(name, time.time())
    assert not Claimant.is_alive(name, time.time())


def _claim() -> str:
    from dpo.caches.claims import Claimant

    return Claimant().name
