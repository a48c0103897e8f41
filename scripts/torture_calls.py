"""A kill, half a write, or an errno at the k-th file call of a run: every save and every cache write."""

from __future__ import annotations

import errno
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import tiny
import torture_preload
from torture_preload import Arm, Call
from torture_process import Ended
from torture_work import WORKS, again, begin, calls, do, right
from torture_world import Case, World, interleave

FULL = (errno.ENOSPC, errno.EDQUOT)
NAMED = (2, 4, 7)
"""Exit codes a failing file may have: what is configured, a checkpoint or cache, the disk."""


def crashes(world: World) -> list[Case]:
    """SIGKILL before a call, or in the middle of a write, at every call that changes a file."""
    return interleave(*(_crashes(world, work) for work in WORKS))


def errors(world: World) -> list[Case]:
    """Each errno at every call it can come from."""
    return interleave(*(_errors(world, work) for work in WORKS))


def _crashes(world: World, work: str) -> Iterator[Case]:
    for call in rare_first(world, work, torture_preload.CHANGES):
        torn = call.kind == torture_preload.WRITE and call.name != "pwrite64"
        for action in (torture_preload.KILL, *([torture_preload.TEAR] if torn else [])):
            name = f"crashes/{work}/{'half' if action == torture_preload.TEAR else 'kill'}/{call.number}"
            yield Case(name, lambda cwd, c=call, a=action: _crash(world, work, c, a, cwd))


def _errors(world: World, work: str) -> Iterator[Case]:
    for call in rare_first(world, work, torture_preload.CHANGES | torture_preload.READ):
        # One errno at a call, drawn by the seed: another one comes with the next call of its shape.
        fitting = [error for error, (kinds, _) in torture_preload.ERRORS.items() if call.kind & kinds]
        world.draw(f"{work}{call.number}").shuffle(fitting)
        for error in fitting[:2]:
            name = f"errors/{work}/{errno.errorcode[error]}/{call.number}"
            yield Case(name, lambda cwd, c=call, e=error: _fail(world, work, c, e, cwd))


def rare_first(world: World, work: str, kinds: int) -> list[Call]:
    """One call of each shape first, in an order drawn by the seed; then the second of each, and so on."""
    seen: dict[str, int] = {}
    turns = []
    shuffled = [call for call in calls(world, work) if call.kind & kinds]
    world.draw("calls").shuffle(shuffled)
    for call in shuffled:
        seen[call.shape] = seen.get(call.shape, 0) + 1
        turns.append((seen[call.shape], call))
    return [call for _, call in sorted(turns, key=lambda turn: turn[0])]


def _nth(world: World, work: str, call: Call, kinds: int) -> int:
    """Which call of the kinds it is."""
    return sum(1 for other in calls(world, work) if other.kind & kinds and other.number <= call.number)


def _crash(world: World, work: str, call: Call, action: int, cwd: Path) -> str | None:
    kinds = torture_preload.CHANGES
    begin(world, work, cwd)
    ended = do(world, work, cwd, Arm(f"{cwd}/", kinds, _nth(world, work, call, kinds), action))
    if ended.code not in (-9, 0):
        return f"{call.shape}: {ended.fault() or f'exit {ended.code}'}"
    wrong = again(world, work, cwd) if ended.code else right(world, work, cwd, ended)
    return wrong and f"{call.shape}: {wrong}"


def _fail(world: World, work: str, call: Call, error: int, cwd: Path) -> str | None:
    kinds, lasting = torture_preload.ERRORS[error]
    begin(world, work, cwd)
    struck = Arm(f"{cwd}/", kinds, _nth(world, work, call, kinds), torture_preload.FAIL, error, lasting)
    ended = do(world, work, cwd, struck)
    if ended.code == 0:
        wrong = right(world, work, cwd, ended)
    else:
        wrong = refused(ended, (7,) if error in FULL else NAMED)
        if wrong is None and work == "train":
            wrong = untrue(cwd)
        wrong = wrong or again(world, work, cwd)
    return wrong and f"{errno.errorcode[error]} at {call.shape}: {wrong}"


def refused(ended: Ended, codes: Iterable[int]) -> str | None:
    """None when a process ended with one of `codes` and one to three lines of error."""
    if fault := ended.fault():
        return fault
    lines = ended.output.splitlines()
    first = next((i for i, line in enumerate(lines) if line.startswith("error: ")), None)
    if ended.code is None or ended.code not in codes:
        return f"exit {ended.code}, not one of {tuple(codes)}: {ended.output[-200:]!r}"
    if first is None or len([line for line in lines[first:] if line.strip()]) > 3:
        return f"exit {ended.code} without one to three lines of error: {ended.output[-300:]!r}"
    return None


def untrue(cwd: Path) -> str | None:
    """A run.json that calls a run complete that ended before its last step."""
    for folder in tiny.folders(cwd):
        record = json.loads((folder / "run.json").read_text())
        if record["status"] == "complete":
            return "run.json says complete after a failure"
    return None
