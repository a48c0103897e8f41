"""Numbers that are not finite and memory that runs out, at any step, in training and twice in one step."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import tiny
from torture_calls import refused
from torture_world import OPTIONS, Case, World, interleave

STEPS = 8
EXACT = "hardware.precision=fp32"
CLOSE = 2e-3
"""Between the figures of a step in one part and of the same step in several."""
FIGURES = ("loss", "rewards/", "logps/", "grad_norm")
"""Those that are means over pairs; means over tokens differ with the parts by TRL's definition."""


def steps(world: World) -> list[Case]:
    """NaN at every step, OOM at every micro-batch, once, twice in a step, and until nothing is left to halve."""
    return interleave(_nans(world), _memory(world))


def _nans(world: World) -> Iterator[Case]:
    numbered = [(option, step) for option in (*OPTIONS, "full") for step in range(1, STEPS + 1)]
    world.draw("nan").shuffle(numbered)
    for option, step in numbered:
        yield Case(f"steps/nan/{option}/{step}", lambda cwd, o=option, s=step: _nan(world, o, s, cwd))


def _nan(world: World, option: str, step: int, cwd: Path) -> str | None:
    ended = world.run("train", world.words(option), cwd, at=[("poison", step, 0)])
    if wrong := refused(ended, (5,)):
        return wrong
    if f"step {step}" not in ended.output:
        return f"does not name step {step}: {ended.output[-200:]!r}"
    folder, record = tiny.record(cwd)
    if record["status"] != "diverged" or (folder / "adapter").exists():
        return f"run.json says {record['status']}; adapter: {(folder / 'adapter').exists()}"
    kept = sorted(path.name for path in (folder / "checkpoints").glob("step-*"))
    due = [f"step-{saved}" for saved in (3, 6) if saved < step]
    return None if kept == due else f"checkpoints {kept}, not {due}"


def _memory(world: World) -> Iterator[Case]:
    draw = world.draw("memory")
    for number in range(40):
        first, second = draw.randint(2, 12), draw.choice((None, 1, 1, 2))
        strikes = [("memory", first, 0)] + ([] if second is None else [("memory", first + second, 0)])
        yield Case(f"steps/memory/{number}", lambda cwd, at=strikes: _starve(world, at, cwd))
    yield Case("steps/floor", lambda cwd: _floor(world, cwd))


def _starve(world: World, strikes: list[tuple[str, int, int]], cwd: Path) -> str | None:
    """The same mathematics in smaller parts: every figure as it was, but for rounding. In an evaluation, which has no
    smaller parts to fall back to, it is exit 6 and another start."""
    ended, wrong = world.run("train", world.words("lora", EXACT), cwd, at=strikes), None
    if ended.code == 6:
        wrong = refused(ended, (6,))
        ended = world.run("train", world.words("lora", EXACT), cwd)
    if ended.code != 0:
        return ended.fault() or f"exit {ended.code}: {ended.output[-300:]!r}"
    _, lines = tiny.outcome(cwd)
    _, expected = world.undisturbed("lora", EXACT)
    for got, right in zip(lines, expected, strict=True):
        for key in (key for key in right if key.startswith(FIGURES)):
            if not math.isclose(got.get(key, math.nan), right[key], rel_tol=1e-3, abs_tol=CLOSE):
                return f"{strikes}: step {right['step']}: {key} is {got.get(key)}, not {right[key]}"
    return wrong


def _floor(world: World, cwd: Path) -> str | None:
    ended = world.run("train", world.words("lora"), cwd, at=[("memory", n, 0) for n in range(40, 2, -1)])
    if wrong := refused(ended, (6,)):
        return wrong
    record = json.loads((tiny.folders(cwd)[0] / "run.json").read_text())
    if record["status"] != "out_of_memory":
        return f"run.json says {record['status']}"
    return world.completes(cwd, "lora")
