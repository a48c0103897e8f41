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
            code, output = tiny.run("train", tiny.arguments(*inputs, *f"lora={option}".split()), cwd)
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
    ("dev", 1),
    ("dev", 2),
    ("dev", 3),
    ("log", 1),
    ("save", 1),
    ("save", 2),
    ("reference", 1),
    ("final", 2),
]


@pytest.mark.parametrize("option", ["lora", "qlora"])
@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (2, 3, 4))])
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


# Where a signal strikes, and the step whose checkpoint it leaves. A step that was begun is finished, nothing more is
# begun; steps 4 and 8 have an evaluation due, whose cut costs the evaluation alone.
SIGNALLED = [
    ("load", 1, tiny.TERM, None),
    pytest.param("load", 1, tiny.INT, None, marks=pytest.mark.slow),
    ("reference", 1, tiny.TERM, None),
    ("dev", 1, tiny.INT, None),
    ("step", 4, tiny.TERM, 4),
    pytest.param("step", 4, tiny.INT, 4, marks=pytest.mark.slow),
    ("step", 8, tiny.TERM, 8),
    pytest.param("step", 8, tiny.INT, 8, marks=pytest.mark.slow),
    ("dev", 2, tiny.TERM, 4),
    ("dev", 3, tiny.INT, 8),
    ("save", 1, tiny.TERM, 4),
    pytest.param("save", 1, tiny.INT, 4, marks=pytest.mark.slow),
    ("final", 1, tiny.TERM, 4),
]


@pytest.mark.parametrize(("place", "number", "signum", "saved"), SIGNALLED)
def test_a_signal_ends_truthfully_and_continues(inputs, undisturbed, place, number, signum, saved, tmp_path):
    code, output = tiny.run("train", tiny.arguments(*inputs, "lora=lora"), tmp_path, (place, number, signum))
    folder, record = tiny.record(tmp_path)
    assert code == 128 + signum, output
    assert record["status"] == "interrupted"
    assert record["exit_code"] == code
    assert not (folder / "adapter").exists()
    assert "Traceback" not in output
    assert newest(folder) == saved
    assert (f"step {saved} is saved in" if saved else "no step is saved yet in") in output
    assert "; the same command continues it" in output
    code, output = tiny.run("train", tiny.arguments(*inputs, "lora=lora"), tmp_path)
    assert code == 0, output
    assert (f"continuing at step {saved}" in output) == (saved is not None)
    assert tiny.outcome(tmp_path) == undisturbed("lora")


def test_a_signal_while_a_run_is_called_complete_changes_nothing(inputs, tmp_path):
    more = ("lora=lora", "dpo.max_steps=1", "dpo.eval_every=0")
    code, output = tiny.run("train", tiny.arguments(*inputs, *more), tmp_path, ("last word", 1, tiny.TERM))
    folder, record = tiny.record(tmp_path)
    assert code == 0, output
    assert (record["status"], record["exit_code"]) == ("complete", 0)
    assert (folder / "adapter").is_dir()


def newest(run: Path) -> int | None:
    """The step of a run's newest intact checkpoint."""
    from dpo.training import checkpoints

    found = checkpoints.newest(run / "checkpoints", print)
    return None if found is None else found.step


@pytest.mark.parametrize("step", [pytest.param(4, marks=pytest.mark.slow), 8])
def test_an_evaluation_made_good_may_be_killed_too(inputs, undisturbed, step, tmp_path):
    """SIGTERM at a step whose evaluation is due, kill -9 in that evaluation when the run goes on, then to the end."""
    command = tiny.arguments(*inputs, "lora=qlora")
    code, output = tiny.run("train", command, tmp_path, ("step", step, tiny.TERM))
    assert code == 143, output
    for at in (("dev", 1, tiny.TERM), ("dev", 1, tiny.KILL)):
        code, output = tiny.run("train", command, tmp_path, at)
        assert code in (143, -signal.SIGKILL), output
        assert f"continuing at step {step}" in output
        assert newest(tiny.record(tmp_path)[0]) == step
    code, output = tiny.run("train", command, tmp_path)
    assert code == 0, output
    assert tiny.outcome(tmp_path) == undisturbed("qlora")


def test_kill_9_in_the_last_evaluation_repeats_no_step(inputs, undisturbed, tmp_path):
    command = tiny.arguments(*inputs, "lora=qlora")
    code, output = tiny.run("train", command, tmp_path, ("dev", 3, tiny.KILL))
    assert code == -signal.SIGKILL, output
    code, output = tiny.run("train", command, tmp_path, ("step", 1, tiny.KILL))
    assert code == 0, output
    assert "continuing at step 8" in output
    assert tiny.outcome(tmp_path) == undisturbed("qlora")


def test_an_evaluation_made_good_computes_in_the_precision_of_training(inputs, tmp_path):
    """On 2 dev pairs, whose figures show it: without autocast the adapters would multiply in fp32."""
    model, pairs = inputs[0], tiny.make_pairs(tmp_path / "pairs.jsonl", 60)
    command = tiny.arguments(model, pairs, "lora=qlora", "dataset.test_fraction=0.4")
    results = []
    for name, at in (("undisturbed", None), ("killed", ("dev", 3, tiny.KILL))):
        (cwd := tmp_path / name).mkdir()
        code, output = tiny.run("train", command, cwd, at)
        if at is not None:
            assert code == -signal.SIGKILL, output
            code, output = tiny.run("train", command, cwd)
            assert "continuing at step 8" in output
        assert code == 0, output
        results.append(tiny.outcome(cwd))
    assert results[0] == results[1]


@pytest.fixture(scope="session")
def stopped(inputs, tmp_path_factory) -> Path:
    """Working folder of a run that was killed in step 8, with checkpoints at 3 and 6."""
    cwd = tmp_path_factory.mktemp("stopped")
    code, output = tiny.run("train", tiny.arguments(*inputs, "lora=lora"), cwd, ("step", 8, tiny.KILL))
    assert code == -signal.SIGKILL, output
    folder, _ = tiny.record(cwd)
    assert sorted(p.name for p in (folder / "checkpoints").iterdir()) == ["step-3", "step-6"]
    return cwd


def interrupted(stopped: Path, cwd: Path) -> Path:
    """A copy of it; returns the run's folder."""
    shutil.copytree(stopped / "outputs", cwd / "outputs")
    return tiny.record(cwd)[0]


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


def test_a_damaged_checkpoint_is_passed_over_and_the_run_ends_the_same(inputs, stopped, undisturbed, tmp_path):
    folder = interrupted(stopped, tmp_path)
    DAMAGES["flipped"](folder / "checkpoints" / "step-6" / "adapter_model.safetensors")
    code, output = tiny.run("train", tiny.arguments(*inputs, "lora=lora"), tmp_path)
    assert code == 0, output
    assert "damaged checkpoint passed over" in output
    assert "continuing at step 3" in output
    assert tiny.outcome(tmp_path) == undisturbed("lora")


def test_all_checkpoints_damaged_is_exit_4(inputs, stopped, tmp_path):
    folder = interrupted(stopped, tmp_path)
    for step in ("step-3", "step-6"):
        DAMAGES["truncated"](folder / "checkpoints" / step / "optimizer.pt")
    code, output = tiny.run("train", tiny.arguments(*inputs, "lora=lora"), tmp_path)
    assert code == 4, output
    assert "resume=never" in output


def test_objects_in_a_checkpoint_whose_manifest_is_right_are_refused(tmp_path):
    import torch

    from dpo.errors import Refused
    from dpo.training.resumable import refuse_pickles

    torch.save(signal.Signals.SIGKILL, tmp_path / "optimizer.pt")
    with pytest.raises(Refused, match="could run code"), refuse_pickles(tmp_path):
        torch.load(tmp_path / "optimizer.pt", weights_only=True)


@pytest.mark.parametrize(
    ("change", "named"),
    [("lora.alpha=4", "config"), ("dpo.beta=0.3", "config"), ("data", "data"), ("model", "base")],
)
def test_resuming_with_something_else_is_refused_by_name(inputs, stopped, tmp_path, change, named):
    folder = interrupted(stopped, tmp_path)
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


def test_what_is_continued_is_the_users_word(inputs, stopped, tmp_path):
    """resume=FOLDER with resume_anyway=true goes on with another beta; resume=never leaves that run and starts anew."""
    folder = interrupted(stopped, tmp_path)
    more = [f"resume={folder}", "resume_anyway=true", "dpo.beta=0.3"]
    code, output = tiny.run("train", tiny.arguments(*inputs, "lora=lora", *more), tmp_path)
    assert code == 0, output
    assert "continuing although config was" in output
    assert "continuing at step 6" in output
    (tmp_path / "other").mkdir()
    other = interrupted(stopped, tmp_path / "other")
    code, output = tiny.run("train", tiny.arguments(*inputs, "lora=lora", "resume=never"), tmp_path / "other")
    assert code == 0, output
    assert "continuing" not in output
    assert sorted(p.name for p in (other / "checkpoints").iterdir()) == ["step-3", "step-6"]
    assert len(tiny.folders(tmp_path / "other")) == 2


def test_nothing_that_is_not_finite_is_stepped_on(inputs, tmp_path):
    """A weight that turns NaN before step 5 ends the run there with exit 5 and the last good checkpoint."""
    code, output = tiny.run("train", tiny.arguments(*inputs, "lora=full"), tmp_path, ("poison", 5, 0))
    folder, record = tiny.record(tmp_path)
    assert code == 5, output
    assert record["status"] == "diverged"
    assert "step 5" in output
    assert "rows of this step" in output
    assert not (folder / "adapter").exists()
    assert newest(folder) == 3


@pytest.mark.parametrize(("place", "number", "says"), [
    ("silent", 1, "step 1: 1 trainable tensors got no gradient, the first: "),
    ("silent", 5, "step 5: 1 trainable tensors got no gradient, the first: "),
    ("drift", 1, "the reference is not the starting policy"),
])  # fmt: skip
def test_what_must_hold_is_checked(inputs, tmp_path, place, number, says):
    """A gradient that is missing at the first step, or at the one after the evaluation of step 4; a policy that is
    not its reference before step 1."""
    code, output = tiny.run("train", tiny.arguments(*inputs, "lora=qlora"), tmp_path, (place, number, 0))
    assert code == 5, output
    assert says in output
    folder, record = tiny.record(tmp_path)
    assert record["status"] == "diverged"
    assert newest(folder) == (3 if number == 5 else None)
    assert "Traceback" not in output


def test_out_of_memory_retries_the_step_in_smaller_parts(inputs, undisturbed, tmp_path):
    argv = tiny.arguments(*inputs, "lora=lora", "hardware.precision=fp32")
    code, output = tiny.run("train", argv, tmp_path, ("memory", 3, 0))
    assert code == 0, output
    assert "out of memory; the same step again" in output
    _, lines = tiny.outcome(tmp_path)
    _, expected = undisturbed("lora hardware.precision=fp32")
    assert [line["loss"] for line in lines] == pytest.approx([line["loss"] for line in expected], abs=1e-4)


def test_an_optimizer_that_does_not_fit_is_named(inputs, tmp_path):
    code, output = tiny.run("train", tiny.arguments(*inputs, "lora=lora"), tmp_path, ("moments", 1, 0))
    assert code == 6, output
    assert "step 1: the optimizer's state does not fit the memory" in output
    assert "dpo.optimizer=paged_adamw_8bit" in output
    assert "Traceback" not in output


def test_a_full_disk_is_exit_7_and_continues_when_there_is_room(inputs, undisturbed, tmp_path):
    code, output = tiny.run("train", tiny.arguments(*inputs, "lora=lora"), tmp_path, ("disk", 2, 0))
    folder, record = tiny.record(tmp_path)
    assert code == 7, output
    assert record["status"] == "disk_full"
    assert [p.name for p in (folder / "checkpoints").iterdir()] == ["step-3"]
    code, output = tiny.run("train", tiny.arguments(*inputs, "lora=lora"), tmp_path)
    assert code == 0, output
    assert tiny.outcome(tmp_path) == undisturbed("lora")


def test_two_out_of_memory_in_one_step_leave_the_figures_and_the_split_of_an_undisturbed_run(inputs, tmp_path):
    """The first attempt fails at once, the second after its first part; what runs on, and is killed and continued,
    is the run that had the smaller budget from the start."""
    argv = tiny.arguments(*inputs, "lora=lora")
    # The dev pairs before step 1 are one part.
    twice = [("memory", 2, 0), ("memory", 4, 0)]
    struck, small = tmp_path / "struck", tmp_path / "small"
    struck.mkdir()
    small.mkdir()
    code, output = tiny.run("train", argv, struck, [*twice, ("norm", 5, tiny.KILL)])
    assert code == -signal.SIGKILL, output
    said = [line for line in output.splitlines() if "the same step again" in line]
    assert [line.split(":")[0] for line in said] == ["step 1"] * 2
    budget = said[-1].split(" with ")[1].split()[0]
    code, output = tiny.run("train", argv, struck)
    assert code == 0, output
    assert f"{budget} tokens a micro-batch" in output
    code, output = tiny.run("train", [*argv, f"hardware.token_budget={budget}"], small)
    assert code == 0, output
    weights, lines = tiny.outcome(small)
    # The dev pairs before step 1 were still computed in one part.
    assert tiny.outcome(struck)[0] == weights
    assert tiny.outcome(struck)[1][1:] == lines[1:]
