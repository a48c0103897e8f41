"""kill -9 at random moments, one after the other, and the run continued to the bits of an undisturbed one."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import tiny
from torture_process import LIMIT, Running
from torture_world import Case, World, interleave

EACH = 100


def kills(world: World) -> list[Case]:
    """`EACH` killed runs an option of lora."""
    return interleave(*(_killed(world, option) for option in world.options))


def _killed(world: World, option: str) -> Iterator[Case]:
    for number in range(EACH):
        name = f"kills/{option}/{number}"
        yield Case(name, lambda cwd, name=name, option=option: _kill(world, name, option, cwd))


def _kill(world: World, name: str, option: str, cwd: Path) -> str | None:
    draw = world.draw(name)
    world.undisturbed(option)
    for _ in range(draw.choice((1, 1, 2))):
        running = world.start("train", world.words(option), cwd)
        # Half of the moments are counted from the first checkpoint on, where the saves are.
        if draw.random() < 0.5:
            _wait_for_checkpoint(cwd, running)
        running.process.join(draw.uniform(0, world.seconds[option]))
        running.send(tiny.KILL)
        ended = world.ended(running)
        if ended.code not in (-9, 0):
            return ended.fault() or f"exit {ended.code}: {ended.output[-300:]!r}"
        if ended.code == 0:
            return world.same(cwd, option)
    return world.completes(cwd, option)


def _wait_for_checkpoint(cwd: Path, running: Running) -> None:
    deadline = time.monotonic() + LIMIT
    while time.monotonic() < deadline and running.process.is_alive():
        if any(any((folder / "checkpoints").glob("*")) for folder in tiny.folders(cwd)):
            return
        time.sleep(0.01)
