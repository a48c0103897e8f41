"""All facts of a checkpoint hang together: manifest, folder, trainer's state, run; and what a run must equal."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from dpo.errors import CheckpointError
from dpo.training import checkpoints
from dpo.training.checkpoints import Facts

FACTS = Facts("run-1", {"config": "c1", "processes": "2"}, {"dpo.beta": 0.1, "dpo.save_every": 3}, {})


def write(root: Path, step: int, facts: Facts = FACTS) -> Path:
    def fill(folder: Path) -> None:
        (folder / "adapter_model.safetensors").write_bytes(b"weights" * 9)
        (folder / "trainer_state.json").write_text(json.dumps({"global_step": step}))
        (folder / "rank-1").mkdir()
        (folder / "rank-1" / "window.json").write_text("{}")

    return checkpoints.write(root, step, facts, fill).folder


def reseal(folder: Path, **changed: Any) -> None:
    """A manifest that says something else, with a seal that fits."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text()) | changed
    del manifest["seal"]
    path.write_text(json.dumps(manifest | {"seal": checkpoints._seal(manifest)}))


def test_any_digit_flipped_in_a_manifest_is_found(tmp_path: Path) -> None:
    path = write(tmp_path, 6) / "manifest.json"
    text = path.read_text()
    assert checkpoints.verify(path.parent, "run-1").step == 6
    places = [i for i, letter in enumerate(text) if letter.isalnum()]
    for i in [text.index('"step": 6') + 8, *places[::7]]:
        other = "9" if text[i] != "9" else "7"
        path.write_text(text[:i] + other + text[i + 1 :])
        with pytest.raises(CheckpointError, match=r"manifest\.json"):
            checkpoints.verify(path.parent, "run-1")


@pytest.mark.parametrize("what", ["renamed", "manifest", "state", "another run", "no seal", "a link"])
def test_what_does_not_agree_is_passed_over_by_name(tmp_path: Path, what: str) -> None:
    write(tmp_path, 3)
    folder = write(tmp_path, 6, Facts("run-2") if what == "another run" else FACTS)
    named = "manifest.json"
    if what == "renamed":
        folder = folder.rename(tmp_path / "step-9")
    elif what == "manifest":
        reseal(folder, step=9)
    elif what == "state":
        state = folder / "trainer_state.json"
        state.write_text('{"global_step": 9}')
        named, size = state.name, state.stat().st_size
        files = json.loads((folder / "manifest.json").read_text())["files"]
        digest = checkpoints._digest(folder)[state.name]["sha256"]
        reseal(folder, files=files | {state.name: {"size": size, "sha256": digest}})
    elif what == "no seal":
        manifest = json.loads((folder / "manifest.json").read_text())
        del manifest["seal"]
        (folder / "manifest.json").write_text(json.dumps(manifest))
    elif what == "a link":
        named = "adapter_model.safetensors"
        shutil.copy(folder / named, tmp_path / "outside")
        (folder / named).unlink()
        (folder / named).symlink_to(tmp_path / "outside")
    said: list[str] = []
    found = checkpoints.newest(tmp_path, said.append, "run-1")
    assert found is not None
    assert found.step == 3
    (line,) = said
    assert str(folder / named) in line


def test_other_names_among_checkpoints_are_left_alone(tmp_path: Path) -> None:
    """A copy somebody keeps is neither read nor deleted; a file with a checkpoint's name is one that is damaged."""
    for step in (3, 6):
        write(tmp_path, step)
    shutil.copytree(tmp_path / "step-6", tmp_path / "step-6.bak")
    (tmp_path / "step-x").mkdir()
    (tmp_path / "step-12").write_text("")
    said: list[str] = []
    found = checkpoints.newest(tmp_path, said.append, "run-1")
    assert found is not None
    assert found.step == 6
    assert len(said) == 1
    assert "step-12" in said[0]
    checkpoints.rotate(tmp_path, 1, set(), "run-1")
    write(tmp_path, 9)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-12", "step-6", "step-6.bak", "step-9", "step-x"]


def test_rotation_reads_again_only_what_it_does_not_know(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []
    original = checkpoints.hashlib.file_digest

    def counted(file: Any, kind: str) -> Any:
        read.append(Path(file.name).parent)
        return original(file, kind)

    folders = [write(tmp_path, step) for step in (1, 2, 3)]
    monkeypatch.setattr(checkpoints.hashlib, "file_digest", counted)
    known = {folders[2]}
    checkpoints.rotate(tmp_path, 2, known, "run-1")
    assert {path for path in read if path.name != "rank-1"} == {folders[1]}
    assert known == set(folders[1:])
    read.clear()
    checkpoints.rotate(tmp_path, 2, known, "run-1")
    assert not read
    # Truncated since: that costs no reading to see.
    (folders[2] / "adapter_model.safetensors").write_bytes(b"w")
    checkpoints.rotate(tmp_path, 1, known, "run-1")
    assert folders[1].is_dir()


def test_folders_inside_a_checkpoint_are_synced_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    original = os.fsync

    def noted(descriptor: int) -> None:
        synced.append(os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")))
        original(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    write(tmp_path, 3)
    assert {"rank-1", "window.json", "manifest.json", ".tmp-step-3", tmp_path.name} <= set(synced)
    assert synced.index(".tmp-step-3") < synced.index(tmp_path.name)


@pytest.mark.parametrize(
    ("now", "said"),
    [
        (Facts("run-1", {"config": "c1", "processes": "1"}), "processes was 2, now 1"),
        (Facts("run-1", {"config": "c1", "processes": "2", "device": "cuda"}), "device was None, now cuda"),
        (
            Facts("run-1", {"config": "c2", "processes": "2"}, {"dpo.beta": 0.3, "dpo.save_every": 3}),
            "config was c1, now c2: dpo.beta=0.3 (was 0.1)",
        ),
    ],
)
def test_another_computation_is_refused_by_name(tmp_path: Path, now: Facts, said: str) -> None:
    checkpoint = checkpoints.verify(write(tmp_path, 3))
    with pytest.raises(CheckpointError, match="resume_anyway=true") as error:
        checkpoints.check_belongs(checkpoint, now, False, print)
    assert said in str(error.value)
    lines: list[str] = []
    checkpoints.check_belongs(checkpoint, now, True, lines.append)
    assert lines[0] == f"continuing although {said}"


def test_what_says_how_and_when_may_change_and_is_said(tmp_path: Path) -> None:
    checkpoint = checkpoints.verify(write(tmp_path, 3))
    now = Facts("run-1", dict(FACTS.fingerprints), {"dpo.beta": 0.1, "hardware.activation_checkpointing": "on"})
    lines: list[str] = []
    checkpoints.check_belongs(checkpoint, now, False, lines.append)
    assert lines == [
        "continued with dpo.save_every=null (was 3), hardware.activation_checkpointing=on (was null)",
    ]


def test_figures_of_ranks_that_are_gone_still_count() -> None:
    from dpo.distributed.ranks import summed

    assert summed([{"loss": [3.0, 2.0]}, {"loss": [1.0, 2.0], "margin": [4.0, 1.0]}]) == {
        "loss": [4.0, 4.0],
        "margin": [4.0, 1.0],
    }
