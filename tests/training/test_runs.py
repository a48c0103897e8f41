"""Whole runs as real processes: killed, interrupted, starved, damaged, and continued to the same result."""

from __future__ import annotations

import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny

Outcome = tuple[bytes, list[dict[str, Any]]]


@pytest.fixture(scope="session")
def inputs(tmp_path_factory) -> tuple[Path, Path]:
    """A tiny model folder and a pairs file."""
    folder = tmp_path_factory.mktemp("inputs")
    return tiny.make_model(folder / "model"), tiny.make_pairs(folder / "pairs.jsonl")


@pytest.fixture(scope="session")
def undisturbed(inputs, tmp_path_factory) -> Callable[[str], Outcome]:
    """The result of an undisturbed run of a lora option, computed once."""
    known: dict[str, Outcome] = {}

    def result(option: str) -> Outcome:
        if option not in known:
            cwd = tmp_path_factory.mktemp("undisturbed")
            code, output = tiny.run("train", tiny.arguments(*inputs, f"lora={option}"), cwd)
            assert code == 0, output
            known[option] = tiny.outcome(cwd)
        return known[option]

    return result


@pytest.mark.parametrize("option", ["lora", "qlora", "full"])
def test_a_run_learns_logs_and_completes(inputs, undisturbed, option, tmp_path):
    _, lines = undisturbed(option)
    assert [line["step"] for line in lines if line["kind"] == "train"] == list(range(1, 9))
    assert [line["step"] for line in lines if line["kind"] == "eval"] == [0, 4, 8]
    evaluations = [line["loss"] for line in lines if line["kind"] == "eval"]
    assert evaluations[0] == pytest.approx(0.6931, abs=1e-3)
    assert evaluations[-1] < evaluations[0]


def test_the_same_command_gives_the_same_adapter(inputs, undisturbed, tmp_path):
    code, output = tiny.run("train", tiny.arguments(*inputs, "lora=qlora"), tmp_path)
    assert code == 0, output
    assert tiny.outcome(tmp_path) == undisturbed("qlora")


# fsync strikes in run.json, in each file of a checkpoint, in its folder; the rest are named places.
PLACES = [
    ("step", 2),
    ("step", 5),
    ("norm", 7),
    ("evaluate", 1),
    ("save", 1),
    ("save", 2),
    ("reference", 1),
    ("final", 2),
]


@pytest.mark.parametrize("option", ["lora", "qlora"])
@pytest.mark.parametrize("seed", range(5))
def test_killed_anywhere_it_continues_to_the_same_bits(inputs, undisturbed, option, seed, tmp_path):
    draw = random.Random(f"{option}{seed}")
    for _ in range(2):
        place = ("fsync", draw.randint(3, 60)) if draw.random() < 0.5 else draw.choice(PLACES)
        code, output = tiny.run("train", tiny.arguments(*inputs, f"lora={option}"), tmp_path, (*place, tiny.KILL))
        assert code in (-signal.SIGKILL, 0), output
        if not tiny.folders(tmp_path):
            continue  # killed before there was anything to continue
        _, record = tiny.record(tmp_path)
        assert (record["status"] == "complete") == (code == 0)
        if code == 0:
            break
    else:
        code, output = tiny.run("train", tiny.arguments(*inputs, f"lora={option}"), tmp_path)
        assert code == 0, output
    _, record = tiny.record(tmp_path)
    assert record["status"] == "complete"
    assert tiny.outcome(tmp_path) == undisturbed(option)


@pytest.mark.parametrize(
    ("place", "number"), [("load", 1), ("reference", 1), ("step", 4), ("evaluate", 2), ("save", 1), ("final", 1)]
)
@pytest.mark.parametrize("signum", [tiny.TERM, tiny.INT])
def test_a_signal_ends_truthfully_and_continues(inputs, undisturbed, place, number, signum, tmp_path):
    code, output = tiny.run("train", tiny.arguments(*inputs, "lora=lora"), tmp_path, (place, number, signum))
    folder, record = tiny.record(tmp_path)
    assert code == 128 + signum, output
    assert record["status"] == "interrupted"
    assert record["exit_code"] == code
    assert not (folder / "adapter").exists()
    assert "Traceback" not in output
    if place in ("step", "save"):
        # The signal strikes in step 4 or in the save after step 3; step 4 is finished, then nothing more is begun.
        assert record["step"] == 4
    code, output = tiny.run("train", tiny.arguments(*inputs, "lora=lora"), tmp_path)
    assert code == 0, output
    assert tiny.outcome(tmp_path) == undisturbed("lora")


def interrupted(inputs: tuple[Path, Path], cwd: Path, *more: str) -> Path:
    """A run killed in step 8, with checkpoints at 3 and 6; returns its folder."""
    code, output = tiny.run("train", tiny.arguments(*inputs, *more), cwd, ("step", 8, tiny.KILL))
    assert code == -signal.SIGKILL, output
    folder, _ = tiny.record(cwd)
    assert sorted(p.name for p in (folder / "checkpoints").iterdir()) == ["step-3", "step-6"]
    return folder


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "flipped": lambda path: path.write_bytes(flip(path.read_bytes())),
    "deleted": lambda path: path.unlink(),
    "emptied": lambda path: path.write_bytes(b""),
}


def flip(data: bytes) -> bytes:
    """One bit of the middle byte."""
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


@pytest.fixture(scope="session")
def stopped(inputs, tmp_path_factory) -> Path:
    """Working folder of a run that stopped with two checkpoints."""
    cwd = tmp_path_factory.mktemp("stopped")
    interrupted(inputs, cwd, "lora=lora")
    return cwd


def test_every_damage_to_every_checkpoint_file_is_found_and_named(stopped):
    from dpo.errors import CheckpointError
    from dpo.training import checkpoints

    folder, _ = tiny.record(stopped)
    original = folder / "checkpoints" / "step-6"
    files = sorted(p.name for p in original.iterdir())
    assert len(files) >= 8
    for name in files:
        for damage in DAMAGES.values():
            copy = stopped / "copy" / "checkpoints"
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(folder / "checkpoints", copy)
            damage(copy / "step-6" / name)
            with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
                checkpoints.verify(copy / "step-6")
            said: list[str] = []
            found = checkpoints.newest(copy, said.append)
            assert found is not None
            assert found.step == 3
            assert len(said) == 1


def test_a_damaged_checkpoint_is_passed_over_and_the_run_ends_the_same(inputs, undisturbed, tmp_path):
    folder = interrupted(inputs, tmp_path, "lora=lora")
    DAMAGES["flipped"](folder / "checkpoints" / "step-6" / "adapter_model.safetensors")
    code, output = tiny.run("train", tiny.arguments(*inputs, "lora=lora"), tmp_path)
    assert code == 0, output
    assert "damaged checkpoint passed over" in output
    assert "continuing at step 3" in output
    assert tiny.outcome(tmp_path) == undisturbed("lora")


def test_all_checkpoints_damaged_is_exit_4(inputs, tmp_path):
    folder = interrupted(inputs, tmp_path, "lora=lora")
    for step in ("step-3", "step-6"):
        DAMAGES["truncated"](folder / "checkpoints" / step / "optimizer.pt")
    code, output = tiny.run("train", tiny.arguments(*inputs, "lora=lora"), tmp_path)
    assert code == 4, output
    assert "resume=never" in output


@pytest.mark.parametrize(
    ("change", "named"),
    [("lora.alpha=4", "config"), ("dpo.beta=0.3", "config"), ("data", "data"), ("model", "base")],
)
def test_resuming_with_something_else_is_refused_by_name(inputs, tmp_path, change, named):
    folder = interrupted(inputs, tmp_path, "lora=lora")
    model, pairs = inputs
    more = [f"resume={folder}"]
    if change == "data":
        pairs = tiny.make_pairs(tmp_path / "other.jsonl", 30)
    elif change == "model":
        model = tmp_path / "model"
        shutil.copytree(inputs[0], model)
        weights = model / "model.safetensors"
        data = bytearray(weights.read_bytes())
        data[-3] ^= 1
        weights.write_bytes(bytes(data))
    else:
        more.append(change)
    code, output = tiny.run("train", tiny.arguments(model, pairs, "lora=lora", *more), tmp_path)
    assert code == 4, output
    assert f"{named} was" in output
    assert "resume_anyway=true" in output


def test_nothing_that_is_not_finite_is_stepped_on(inputs, tmp_path):
    """A weight that turns NaN before step 5 ends the run there with exit 5 and the last good checkpoint."""
    code, output = tiny.run("train", tiny.arguments(*inputs, "lora=full"), tmp_path, ("poison", 5, 0))
    folder, record = tiny.record(tmp_path)
    assert code == 5, output
    assert record["status"] == "diverged"
    assert "step 5" in output
    assert "rows of this step" in output
    assert not (folder / "adapter").exists()
    from dpo.training import checkpoints

    found = checkpoints.newest(folder / "checkpoints", print)
    assert found is not None
    assert found.step == 3


def test_out_of_memory_retries_the_step_in_smaller_parts(inputs, undisturbed, tmp_path):
    code, output = tiny.run("train", tiny.arguments(*inputs, "lora=lora"), tmp_path, ("memory", 3, 0))
    assert code == 0, output
    assert "out of memory; the same step again" in output
    _, lines = tiny.outcome(tmp_path)
    _, expected = undisturbed("lora")
    assert [line["loss"] for line in lines] == pytest.approx([line["loss"] for line in expected], abs=1e-4)


def test_a_full_disk_is_exit_7_and_continues_when_there_is_room(inputs, undisturbed, tmp_path):
    code, output = tiny.run("train", tiny.arguments(*inputs, "lora=lora"), tmp_path, ("disk", 2, 0))
    folder, record = tiny.record(tmp_path)
    assert code == 7, output
    assert record["status"] == "disk_full"
    assert [p.name for p in (folder / "checkpoints").iterdir()] == ["step-3"]
    code, output = tiny.run("train", tiny.arguments(*inputs, "lora=lora"), tmp_path)
    assert code == 0, output
    assert tiny.outcome(tmp_path) == undisturbed("lora")
