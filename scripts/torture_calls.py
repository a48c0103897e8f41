"""A kill, half a write, or an errno at the k-th file call of a run: every save and every cache write."""

from __future__ import annotations

import errno
import json
from collections.abc import Iterable
from pathlib import Path

import tiny
import torture_preload
from torture_preload import Arm, Call
from torture_process import Ended
from torture_world import Case, World

FULL = (errno.ENOSPC, errno.EDQUOT)
NAMED = (2, 4, 7)
"""Exit codes a failing file may have: what is configured, a checkpoint or cache, the disk."""


def crashes(world: World) -> list[Case]:
    """SIGKILL before a call, or in the middle of a write, at every call that changes a file."""
    cases = []
    for call in rare_first(world, [c for c in world.calls("lora") if c.kind & torture_preload.CHANGES]):
        torn = call.kind == torture_preload.WRITE and call.name != "pwrite64"
        for action in (torture_preload.KILL, *([torture_preload.TEAR] if torn else [])):
            name = f"crashes/{'half' if action == torture_preload.TEAR else 'kill'}/{call.number}"
            cases.append(Case(name, lambda cwd, call=call, action=action: _crash(world, call, action, cwd)))
    return cases


def errors(world: World) -> list[Case]:
    """Each errno at every call it can come from."""
    cases = []
    calls = world.calls("lora")
    for call in rare_first(world, calls):
        for error, (kinds, lasting) in torture_preload.ERRORS.items():
            if call.kind & kinds:
                name = f"errors/{errno.errorcode[error]}/{call.number}"
                cases.append(Case(name, lambda cwd, c=call, e=error, on=lasting: _fail(world, c, e, on, cwd)))
    return cases


def rare_first(world: World, calls: Iterable[Call]) -> list[Call]:
    """One call of each shape first, in an order drawn by the seed; then the second of each, and so on."""
    seen: dict[str, int] = {}
    turns = []
    shuffled = list(calls)
    world.draw("calls").shuffle(shuffled)
    for call in shuffled:
        seen[call.shape] = seen.get(call.shape, 0) + 1
        turns.append((seen[call.shape], call))
    return [call for _, call in sorted(turns, key=lambda turn: turn[0])]


def _nth(world: World, call: Call, kinds: int) -> int:
    """Which call of the kinds it is."""
    return sum(1 for other in world.calls("lora") if other.kind & kinds and other.number <= call.number)


def _crash(world: World, call: Call, action: int, cwd: Path) -> str | None:
    kinds = torture_preload.CHANGES
    arm = Arm(f"{cwd}/", kinds, _nth(world, call, kinds), action)
    ended = world.run("train", world.words("lora"), cwd, arm=arm)
    if ended.code not in (-9, 0):
        return f"{call.shape}: {ended.fault() or f'exit {ended.code}'}"
    wrong = world.completes(cwd, "lora") if ended.code else world.same(cwd, "lora")
    return wrong and f"{call.shape}: {wrong}"


def _fail(world: World, call: Call, error: int, lasting: bool, cwd: Path) -> str | None:
    kinds = torture_preload.ERRORS[error][0]
    arm = Arm(f"{cwd}/", kinds, _nth(world, call, kinds), torture_preload.FAIL, error, lasting)
    ended = world.run("train", world.words("lora"), cwd, arm=arm)
    wrong = refused(ended, (7,) if error in FULL else NAMED)
    if ended.code == 0:
        wrong = world.same(cwd, "lora")
    elif wrong is None:
        wrong = untrue(cwd) or world.completes(cwd, "lora")
    return wrong and f"{call.shape}: {wrong}"


def refused(ended: Ended, codes: Iterable[int]) -> str | None:
    """None when a process ended with one of `codes` and one to three lines of error."""
    if fault := ended.fault():
        return fault
    lines = ended.output.splitlines()
    first = next((i for i, line in enumerate(lines) if line.startswith("error: ")), None)
    if ended.code not in codes:
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
