"""A content-addressed cache entry: a folder that is written aside, sealed with a manifest, and verified when read."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from dpo.errors import CheckpointError
from dpo.records.files import sync_folder, write_json

MANIFEST = "manifest.json"


def file_digest(path: Path) -> str:
    """sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def damage(folder: Path) -> str | None:
    """What is wrong with an entry, naming the file, or None when every byte is as it was written."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
    except (OSError, ValueError) as error:
        return f"{MANIFEST}: {error}"
    for name, expected in manifest.items():
        path = folder / name
        if not path.is_file():
            return f"{name}: missing"
        if path.stat().st_size != expected["size"]:
            return f"{name}: {path.stat().st_size} bytes, expected {expected['size']}"
        if file_digest(path) != expected["sha256"]:
            return f"{name}: its bytes have changed"
    return None


def get_or_build(root: Path, key: str, build: Callable[[Path], None], say: Callable[[str], None]) -> tuple[Path, bool]:
    """The verified folder of `key` under `root`, and whether it was there already.

    One process builds while others wait for it; the lock falls with its owner. A damaged entry is named through
    `say` and built again once. `build` fills an empty folder. Raises CheckpointError if what was just written
    cannot be read back.
    """
    from filelock import FileLock

    root.mkdir(parents=True, exist_ok=True)
    entry = root / key
    with FileLock(root / f"{key}.lock"):
        if os.path.lexists(entry):
            fault = damage(entry)
            if fault is None:
                return entry, True
            say(f"cache entry {entry} is damaged ({fault}); building it again")
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
        for left in root.glob(f".{key[:12]}-*"):  # by a builder that was killed: the lock is ours now
            shutil.rmtree(left)
        aside = Path(tempfile.mkdtemp(prefix=f".{key[:12]}-", dir=root))
        try:
            build(aside)
            manifest = {
                path.name: {"size": path.stat().st_size, "sha256": file_digest(path)}
                for path in sorted(aside.iterdir())
            }
            write_json(aside / MANIFEST, manifest)
            os.rename(aside, entry)
            sync_folder(root)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        if (fault := damage(entry)) is not None:
            raise CheckpointError(f"{entry}: {fault}, right after it was written; check the disk")
        return entry, False
