"""Verified, atomic checkpoints.

A checkpoint is written to `.tmp-step-N`, every file fsynced, a manifest with size and SHA-256 of each file and the
facts of the run added, then renamed to `step-N` and the folder fsynced. A kill at any moment leaves either the
whole checkpoint or none. The manifest is sealed with a hash over its own content, and what it says must agree with
the folder's name and the trainer's state. Only folders that verify are resumed from or counted.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dpo.config.identity import Role, changes
from dpo.errors import CheckpointError, DiskFull, is_disk_full
from dpo.records.files import sync

MANIFEST = "manifest.json"
TRAINER_STATE = "trainer_state.json"
NAME = re.compile(r"step-(0|[1-9][0-9]*)")


@dataclass(frozen=True)
class Facts:
    """What a checkpoint belongs to: the run's id, the fingerprints and `settings` it was made with, and the mark of
    metrics.jsonl as it stood."""

    run: str = ""
    fingerprints: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint folder, the optimizer step it stands at, and its facts."""

    folder: Path
    step: int
    facts: Facts = field(default_factory=Facts)


def write(root: Path, step: int, facts: Facts, fill: Callable[[Path], None]) -> Checkpoint:
    """Write checkpoint `step`; `fill` puts the files into the folder it is given. Raises DiskFull."""
    final, aside = root / f"step-{step}", root / f".tmp-step-{step}"
    root.mkdir(parents=True, exist_ok=True)
    for left in root.glob(".tmp-step-*"):
        _remove(left)
    _check_disk(root)
    try:
        aside.mkdir()
        fill(aside)
        manifest = {"step": step, "facts": asdict(facts), "files": _digest(aside)}
        (aside / MANIFEST).write_text(json.dumps(manifest | {"seal": _seal(manifest)}, indent=2))
        for path in aside.rglob("*"):
            sync(path)
        sync(aside)
        _remove(final)
        aside.rename(final)
        sync(root)
    except Exception as error:
        shutil.rmtree(aside, ignore_errors=True)
        if is_disk_full(error):
            raise _full(root) from None
        raise
    return Checkpoint(final, step, facts)


def _full(root: Path) -> DiskFull:
    return DiskFull(
        f"{root}: no space left for a checkpoint; the older ones are intact\n"
        "free some room and run the same command again"
    )


def _check_disk(root: Path) -> None:
    """Refuse early when the last checkpoint's size would not fit."""
    sizes = [sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) for folder in _newest_first(root)]
    if sizes and shutil.disk_usage(root).free < 1.1 * max(sizes):
        raise _full(root)


def _newest_first(root: Path) -> list[Path]:
    """Everything in `root` with a checkpoint's name. Other names, like a copy somebody keeps there, are left alone."""
    named = [path for path in root.iterdir() if NAME.fullmatch(path.name)] if root.is_dir() else []
    return sorted(named, key=lambda path: int(path.name.removeprefix("step-")), reverse=True)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if not path.is_dir() or path.is_symlink())


def _digest(folder: Path) -> dict[str, dict[str, Any]]:
    files = {}
    for path in _files(folder):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        files[str(path.relative_to(folder))] = {"size": path.stat().st_size, "sha256": digest}
    return files


def _seal(manifest: Mapping[str, Any]) -> str:
    """Hash over the content of a manifest, in one form."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def verify(folder: Path, run: str | None = None, contents: bool = True) -> Checkpoint:
    """The checkpoint in `folder`, intact and of the run with this id; raises CheckpointError naming what is not.

    `contents=False` believes the content of files whose sizes are right: for what this process has written or verified.
    """
    try:
        return _verified(folder, run, contents)
    except OSError as error:
        where = error.filename or folder
        raise CheckpointError(f"{where}: {error.strerror or error}") from None


def _verified(folder: Path, run: str | None, contents: bool) -> Checkpoint:
    step, facts, files = _read_manifest(folder / MANIFEST)
    if folder.name != f"step-{step}":
        raise CheckpointError(f"{folder}/{MANIFEST}: is that of step {step}")
    if run is not None and facts.run != run:
        raise CheckpointError(f"{folder}/{MANIFEST}: is that of another run: its id is not the one in run.json")
    for path in _files(folder):
        name = str(path.relative_to(folder))
        if name not in files and name != MANIFEST:
            raise CheckpointError(f"{path}: not part of this checkpoint")
    for name, (size, digest) in files.items():
        path = folder / name
        if not path.is_file() or path.is_symlink():
            raise CheckpointError(f"{path}: missing")
        if path.stat().st_size != size:
            raise CheckpointError(f"{path}: {path.stat().st_size} bytes, should be {size}")
        if contents:
            with path.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                    raise CheckpointError(f"{path}: content does not match its SHA-256")
    if contents and TRAINER_STATE in files and json.loads((folder / TRAINER_STATE).read_text())["global_step"] != step:
        raise CheckpointError(f"{folder}/{TRAINER_STATE}: is not that of step {step}")
    return Checkpoint(folder, step, facts)


def _read_manifest(path: Path) -> tuple[int, Facts, dict[str, tuple[int, str]]]:
    """(step, facts, file -> (size, SHA-256)) of a manifest whose seal holds."""
    try:
        text = path.read_text()
    except FileNotFoundError:
        raise CheckpointError(f"{path.parent}: no {MANIFEST}") from None
    except ValueError:
        raise CheckpointError(f"{path}: not readable") from None
    try:
        manifest = json.loads(text)
        if not isinstance(manifest, dict):
            raise CheckpointError(f"{path}: not readable")
        if "seal" not in manifest:
            raise CheckpointError(f"{path}: has no seal, as one of an earlier version; nothing in it is sure")
        if manifest.pop("seal") != _seal(manifest):
            raise CheckpointError(f"{path}: content does not match its seal")
        files = {str(name): (int(entry["size"]), str(entry["sha256"])) for name, entry in manifest["files"].items()}
        return int(manifest["step"]), Facts(**manifest["facts"]), files
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise CheckpointError(f"{path}: not readable") from None


def newest(root: Path, say: Callable[[str], None], run: str | None = None) -> Checkpoint | None:
    """The newest checkpoint that verifies as one of this run, or None when there is none at all.

    Damaged ones are named through `say` and passed over; when all are damaged, raises CheckpointError.
    """
    damaged = []
    for folder in _newest_first(root):
        try:
            return verify(folder, run)
        except CheckpointError as error:
            damaged.append(str(error))
            say(f"damaged checkpoint passed over: {error}")
    if damaged:
        raise CheckpointError(
            f"{root}: no intact checkpoint ({len(damaged)} damaged; the newest: {damaged[0]})\n"
            "start anew with resume=never"
        )
    return None


def check_belongs(checkpoint: Checkpoint, now: Facts, anyway: bool, say: Callable[[str], None]) -> None:
    """Refuse to continue on other data, base weights or settings than the checkpoint's, unless `anyway`.

    What only says how or when something is computed may differ, and is said.
    """
    before = checkpoint.facts
    written, fingerprints = before.fingerprints, now.fingerprints
    differing = [key for key in sorted(set(written) | set(fingerprints)) if written.get(key) != fingerprints.get(key)]
    if differing:
        what = "; ".join(f"{key} was {written.get(key)}, now {fingerprints.get(key)}" for key in differing)
        keys = changes(before.settings, now.settings, Role.what)
        if keys and "config" in differing:
            what += f": {', '.join(keys)}"
        if not anyway:
            raise CheckpointError(
                f"{checkpoint.folder}: {what}\nresume_anyway=true continues all the same; resume=never starts anew"
            )
        say(f"continuing although {what}")
    if changed := changes(before.settings, now.settings, Role.how, Role.when):
        say(f"continued with {', '.join(changed)}")


def rotate(root: Path, keep: int, known: set[Path], run: str | None = None) -> None:
    """Delete the oldest checkpoints beyond `keep`; only intact ones of this run count.

    `known` are those this process has written or verified: their files are not read again. Others are added to it.
    """
    intact = 0
    for folder in _newest_first(root):
        if intact >= keep:
            _remove(folder)
            known.discard(folder)
            continue
        try:
            verify(folder, run, contents=folder not in known)
            known.add(folder)
            intact += 1
        except CheckpointError:
            continue
