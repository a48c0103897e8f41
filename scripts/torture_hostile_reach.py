"""What a hostile thing must not reach, and how it is handed over."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tiny
from torture_damage import finished_run
from torture_process import Ended
from torture_world import Case, World

OWNED = "owned"
"""A file that only hostile code makes."""
ESCAPES = "\x1b]0;owned\x07\x1b[2J\u202egpj"
RAW = ("\x1b", "\x07", "\u202e", "\x9b")
MEMORY = 6 * 2**30


def harm(ended: Ended, cwd: Path) -> str | None:
    """What a hostile thing must not reach; canaries are looked for after every case."""
    if found := [*cwd.rglob(OWNED), *(p for p in (cwd.parent / OWNED, Path("/tmp") / OWNED) if p.exists())]:  # noqa: S108
        for path in found:
            path.unlink()
        return "code of the hostile file was run"
    raw = [mark for mark in RAW if mark in ended.output]
    return ended.fault() or (f"raw {raw[0]!r} in the output: {ended.output[-300:]!r}" if raw else None)


def copied(world: World, cwd: Path) -> Path:
    shutil.copytree(finished_run(world, world.options[0]), cwd, dirs_exist_ok=True)
    return tiny.folders(cwd)[0]


def drawn(world: World, kind: str, cases: list[Case]) -> Iterator[Case]:
    world.draw(kind).shuffle(cases)
    yield from cases


class Payload:
    """Pickled, it makes the file OWNED where it is read."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (OWNED, "w"))
