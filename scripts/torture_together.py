"""Several starts at one moment: of one run, fresh or to be continued, and eight on one cold cache."""

from __future__ import annotations

import re
import shutil
import time
from pathlib import Path

from torture_calls import refused
from torture_process import Ended
from torture_world import Case, World, interleave

AHEAD = 1.0
"""Seconds until the processes, all forked by then, begin together."""
EIGHT = 8


def together(world: World) -> list[Case]:
    """Two of one command, and eight commands of one cache."""
    twos = [
        Case(f"together/{kind}/{number}", lambda cwd, k=kind, n=number: _two(world, k, n, cwd))
        for number in range(20)
        for kind in ("fresh", "continued")
    ]
    eights = [Case(f"together/eight/{number}", lambda cwd: _eight(world, cwd)) for number in range(3)]
    return interleave(twos, eights)


def _two(world: World, kind: str, number: int, cwd: Path) -> str | None:
    """One owner a run folder: whatever the second does (wait, begin a run of its own, be refused in words), every
    complete run is the undisturbed one, and one of them is there."""
    option = world.options[number % len(world.options)]
    if kind == "continued":
        shutil.copytree(world.interrupted(option), cwd, dirs_exist_ok=True)
    began = time.time() + AHEAD
    # A little apart too: 0 to 0.3 s.
    shift = world.draw(f"two{number}").choice((0.0, 0.0, 0.1, 0.3))
    both = [world.start("train", world.words(option), cwd, start_at=began + i * shift) for i in range(2)]
    ended = [world.ended(one) for one in both]
    wrong = next((fault for one in ended if (fault := _unfit(one))), None)
    if wrong is None and not any(one.code == 0 for one in ended):
        wrong = f"none of two trained: exits {[one.code for one in ended]}: {ended[0].output[-200:]!r}"
    return wrong or _all_same(world, option, cwd)


def _unfit(ended: Ended) -> str | None:
    return ended.fault() if ended.code == 0 else refused(ended, (2, 4))


def _all_same(world: World, option: str, cwd: Path) -> str | None:
    for folder in sorted((cwd / "outputs").glob("run*/*-*")):
        if folder.name.startswith("."):
            return f"{folder.name} was left behind"
        if wrong := world.same(cwd, option, folder):
            return f"{folder.name}: {wrong}"
    return None


def _eight(world: World, cwd: Path) -> str | None:
    """One computes the reference while seven wait; all end in the same adapter."""
    option = world.options[0]
    began = time.time() + AHEAD
    # The cadence of evaluations is another in each, so that none waits for another's run.
    names = [f"run{number}" for number in range(EIGHT)]
    all_of_them = [world.start("train", world.words(option, f"name={n}"), cwd, start_at=began) for n in names]
    ended = [world.ended(one, 600) for one in all_of_them]
    for one in ended:
        if one.code != 0:
            return one.fault() or f"exit {one.code}: {one.output[-200:]!r}"
    computed = [int(n) for one in ended for n in re.findall(r"(\d+) computed", one.output)]
    if sum(count > 0 for count in computed) != 1:
        return f"the reference pass was run more than once: {computed}"
    return _all_same(world, option, cwd)
