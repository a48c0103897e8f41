"""A content-addressed cache entry: a folder that is written aside, sealed with a manifest, and verified when read."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dpo.errors import CheckpointError
from dpo.records.files import sync, write_json

MANIFEST = "manifest.json"


def file_digest(path: Path) -> str:
    """sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def damage(folder: Path) -> str | None:
    """What is wrong with an entry, naming the file, or None when every byte is as it was written."""
    # A pipe would be waited for without end.
    if not (folder / MANIFEST).is_file():
        return f"{MANIFEST}: not a file"
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
    except (OSError, ValueError, RecursionError) as error:
        return f"{MANIFEST}: {error}"
    if not isinstance(manifest, dict) or not all(_describes_a_file(one) for one in manifest.values()):
        return f"{MANIFEST}: not a list of files"
    for name, expected in manifest.items():
        path = folder / name
        if not path.is_file():
            return f"{name}: not a file"
        try:
            if path.stat().st_size != expected["size"]:
                return f"{name}: {path.stat().st_size} bytes, expected {expected['size']}"
            if file_digest(path) != expected["sha256"]:
                return f"{name}: its bytes have changed"
        except OSError as error:
            return f"{name}: {error.strerror}"
    more = {path.name for path in folder.iterdir()} - {MANIFEST, *manifest}
    return f"{MANIFEST}: says nothing of {min(more)}" if more else None


def _describes_a_file(found: Any) -> bool:
    return isinstance(found, dict) and found.keys() == {"size", "sha256"}


def _remove(path: Path) -> None:
    """Remove whatever stands there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def get_or_build(root: Path, key: str, build: Callable[[Path], None], say: Callable[[str], None]) -> tuple[Path, bool]:
    """The verified folder of `key` under `root`, and whether it was there already.

    One process builds while others wait for it; the lock falls with its owner. A damaged entry is named through
    `say` and built again once. `build` fills an empty folder. Raises CheckpointError if the folder cannot be used, or
    what was just written cannot be read back.
    """
    from filelock import FileLock

    entry, lock = root / key, FileLock(root / f"{key}.lock")
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except (FileExistsError, IsADirectoryError, NotADirectoryError) as error:
        # Whatever else the system refuses is said where all of it is.
        raise CheckpointError(
            f"{error.filename}: {error.strerror}; remove it, or set DPO_CACHE to another folder"
        ) from None
    try:
        if os.path.lexists(entry):
            fault = damage(entry)
            if fault is None:
                return entry, True
            say(f"cache entry {entry} is damaged ({fault}); building it again")
            _remove(entry)
        for left in root.glob(f".{key[:12]}-*"):  # by a builder that was killed: the lock is ours now
            _remove(left)
        aside = Path(tempfile.mkdtemp(prefix=f".{key[:12]}-", dir=root))
        try:
            build(aside)
            manifest = {
                path.name: {"size": path.stat().st_size, "sha256": file_digest(path)}
                for path in sorted(aside.iterdir())
            }
            write_json(aside / MANIFEST, manifest)
            os.rename(aside, entry)
            sync(root)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        if (fault := damage(entry)) is not None:
            raise CheckpointError(f"{entry}: {fault}, right after it was written; check the disk")
        return entry, False
    finally:
        lock.release()
