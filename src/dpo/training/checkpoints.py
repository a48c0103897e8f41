"""Verified, atomic checkpoints.

A checkpoint is written to `.tmp-step-N`, every file fsynced, a manifest with size and SHA-256 of each file and the
run's fingerprints added, then renamed to `step-N` and the folder fsynced. A kill at any moment leaves either the
whole checkpoint or none. Only folders whose manifest verifies are resumed from or counted.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpo.errors import CheckpointError, DiskFull, is_disk_full
from dpo.records.files import sync_folder

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint folder and the optimizer step it stands at."""

    folder: Path
    step: int


def write(root: Path, step: int, fingerprints: Mapping[str, str], fill: Callable[[Path], None]) -> Checkpoint:
    """Write checkpoint `step`; `fill` puts the files into the folder it is given. Raises DiskFull."""
    final, aside = root / f"step-{step}", root / f".tmp-step-{step}"
    root.mkdir(parents=True, exist_ok=True)
    for left in root.glob(".tmp-step-*"):
        shutil.rmtree(left)
    _check_room(root)
    try:
        aside.mkdir()
        fill(aside)
        manifest = {"step": step, "fingerprints": dict(fingerprints), "files": _digest(aside)}
        (aside / MANIFEST).write_text(json.dumps(manifest, indent=2))
        for path in aside.rglob("*"):
            if path.is_file():
                _sync(path)
        if final.exists():
            shutil.rmtree(final)
        aside.rename(final)
        sync_folder(root)
    except Exception as error:
        shutil.rmtree(aside, ignore_errors=True)
        if is_disk_full(error):
            raise _full(root) from None
        raise
    return Checkpoint(final, step)


def _full(root: Path) -> DiskFull:
    return DiskFull(
        f"{root}: no space left for a checkpoint; the older ones are intact\n"
        "free some room and run the same command again"
    )


def _check_room(root: Path) -> None:
    """Refuse early when the last checkpoint's size would not fit."""
    sizes = [sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) for folder in root.glob("step-*")]
    if sizes and shutil.disk_usage(root).free < 1.1 * max(sizes):
        raise _full(root)


def _digest(folder: Path) -> dict[str, dict[str, Any]]:
    files = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        files[str(path.relative_to(folder))] = {"size": path.stat().st_size, "sha256": digest}
    return files


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def verify(folder: Path) -> dict[str, Any]:
    """Return the manifest of an intact checkpoint; raise CheckpointError naming the file that is not."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        expected, step = manifest["files"], int(manifest["step"])
        known = {name: (int(entry["size"]), str(entry["sha256"])) for name, entry in expected.items()}
        fingerprints = dict(manifest["fingerprints"])
    except FileNotFoundError:
        raise CheckpointError(f"{folder}: no {MANIFEST}") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise CheckpointError(f"{folder}/{MANIFEST}: not readable") from None
    found = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()} - {MANIFEST}
    for name in sorted(found - set(known)):
        raise CheckpointError(f"{folder}/{name}: not part of this checkpoint")
    for name, (size, digest) in known.items():
        path = folder / name
        if not path.is_file():
            raise CheckpointError(f"{path}: missing")
        if path.stat().st_size != size:
            raise CheckpointError(f"{path}: {path.stat().st_size} bytes, should be {size}")
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                raise CheckpointError(f"{path}: content does not match its SHA-256")
    return {"step": step, "fingerprints": fingerprints}


def newest(root: Path, say: Callable[[str], None]) -> Checkpoint | None:
    """The newest checkpoint that verifies, or None when there is none at all.

    Damaged ones are named through `say` and passed over; when all are damaged, raises CheckpointError.
    """
    damaged = []
    folders = sorted(root.glob("step-*"), key=lambda p: int(p.name.removeprefix("step-")), reverse=True)
    for folder in folders:
        try:
            return Checkpoint(folder, verify(folder)["step"])
        except CheckpointError as error:
            damaged.append(str(error))
            say(f"damaged checkpoint passed over: {error}")
    if damaged:
        raise CheckpointError(
            f"{root}: no intact checkpoint ({len(damaged)} damaged; the newest: {damaged[0]})\n"
            "start anew with resume=never"
        )
    return None


def check_belongs(
    checkpoint: Checkpoint, fingerprints: Mapping[str, str], anyway: bool, say: Callable[[str], None]
) -> None:
    """Refuse to continue on other data, base weights or settings than the checkpoint's, unless `anyway`."""
    written = verify(checkpoint.folder)["fingerprints"]
    differing = [key for key in sorted(set(written) | set(fingerprints)) if written.get(key) != fingerprints.get(key)]
    if not differing:
        return
    what = "; ".join(f"{key} was {written.get(key)}, now {fingerprints.get(key)}" for key in differing)
    if not anyway:
        raise CheckpointError(
            f"{checkpoint.folder}: {what}\nresume_anyway=true continues all the same; resume=never starts anew"
        )
    say(f"continuing although {what}")


def rotate(root: Path, keep: int) -> None:
    """Delete the oldest checkpoints beyond `keep`; only intact ones count."""
    intact = 0
    for folder in sorted(root.glob("step-*"), key=lambda p: int(p.name.removeprefix("step-")), reverse=True):
        if intact >= keep:
            shutil.rmtree(folder)
            continue
        try:
            verify(folder)
            intact += 1
        except CheckpointError:
            continue
