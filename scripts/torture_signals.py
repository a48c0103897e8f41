"""SIGTERM and SIGINT in every phase and in the first second: saved, said, never "complete", and continued."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import tiny
from torture_damage import command
from torture_process import Ended, end, spawn
from torture_work import again, begin, right
from torture_world import Case, World, interleave

# Places of tiny that a run passes, and how often it does.
PLACES = {
    "load": 1, "reference": 1, "dev": 3, "step": 8, "norm": 8, "log": 8, "save": 3, "final": 4, "fsync": 60,
}  # fmt: skip
FIRST_SECONDS = 2.0


def signals(world: World) -> list[Case]:
    """By phase, at random moments, and just after the start of a real command."""
    return interleave(_phases(world), _moments(world), _starts(world), _other_verbs(world))


def _phases(world: World) -> Iterator[Case]:
    numbered = [(place, n, number) for place, count in PLACES.items() for n in range(1, count + 1) for number in _BOTH]
    world.draw("phases").shuffle(numbered)
    for place, n, number in numbered:
        name = f"signals/{signal.Signals(number).name}/{place}/{n}"
        yield Case(name, lambda cwd, at=(place, n, number): _phase(world, at, cwd))


_BOTH = (signal.SIGTERM, signal.SIGINT)


def _phase(world: World, at: tuple[str, int, int], cwd: Path) -> str | None:
    ended = world.run("train", world.words("lora"), cwd, at=[at])
    return _judge(world, ended, at[2], cwd)


def _moments(world: World) -> Iterator[Case]:
    for number in range(60):
        name = f"signals/moment/{number}"
        yield Case(name, lambda cwd, name=name: _moment(world, name, cwd))


def _moment(world: World, name: str, cwd: Path) -> str | None:
    draw = world.draw(name)
    which = draw.choice(_BOTH)
    world.undisturbed("lora")
    running = world.start("train", world.words("lora"), cwd)
    running.process.join(draw.uniform(0.05, 1.1 * world.seconds["lora"]))
    running.send(which)
    return _judge(world, world.ended(running), which, cwd)


def _judge(world: World, ended: Ended, number: int, cwd: Path) -> str | None:
    if ended.code == 0:
        return world.same(cwd, "lora")
    if not ended.output and not tiny.folders(cwd):
        return None  # before the first line of the command ran
    if fault := ended.fault():
        return fault
    if ended.code != 128 + number:
        return f"exit {ended.code}, not {128 + number}: {ended.output[-200:]!r}"
    for folder in tiny.folders(cwd):
        record = json.loads((folder / "run.json").read_text())
        if (record["status"], record["exit_code"]) != ("interrupted", ended.code):
            return f"exit {ended.code}, and run.json says {record['status']} with {record['exit_code']}"
        if (folder / "adapter").exists():
            return "an interrupted run has published an adapter"
    return world.completes(cwd, "lora")


def _other_verbs(world: World) -> Iterator[Case]:
    for number in range(40):
        for work in ("evaluate", "export"):
            name = f"signals/{work}/{number}"
            yield Case(name, lambda cwd, w=work, n=name: _other_verb(world, w, n, cwd))


def _other_verb(world: World, work: str, name: str, cwd: Path) -> str | None:
    """Interrupted at a random moment it says so, and the same command again leaves what it should."""
    draw = world.draw(name)
    which = draw.choice(_BOTH)
    begin(world, work, cwd)
    verb, words, _ = command(world, work, world.options[0], cwd)
    running = world.start(verb, words, cwd)
    running.process.join(draw.uniform(0.05, 3.0))
    running.send(which)
    ended = world.ended(running)
    if not ended.output:
        return None  # before the first line of the command ran
    if ended.code not in (0, 128 + which, -which):
        return ended.fault() or f"exit {ended.code}, not {128 + which}: {ended.output[-200:]!r}"
    if "Traceback" in ended.output:
        return ended.fault()
    return right(world, work, cwd, ended) if ended.code == 0 else again(world, work, cwd)


def _starts(world: World) -> Iterator[Case]:
    for number in range(20):
        name = f"signals/start/{number}"
        yield Case(name, lambda cwd, name=name: _start(world, name, cwd))


def _start(world: World, name: str, cwd: Path) -> str | None:
    """A command as a user types it, interrupted in its first two seconds: it ends by the signal and says no more than
    a line; what Python itself says before our first line runs is not ours."""
    draw = world.draw(name)
    which, after = draw.choice(_BOTH), draw.uniform(0.0, FIRST_SECONDS)
    said = cwd / "said.txt"
    with said.open("wb") as file:
        own = {"DPO_OUTPUTS": str(cwd / "outputs"), "DPO_CACHE": str(cwd / "cache")}
        process = spawn("train", world.words("lora"), cwd, own, stdout=file, stderr=file)
        time.sleep(after)
        process.send_signal(which)
        code = end(process)
    output = said.read_text(errors="replace")
    world.said.append(output)
    when = f"{signal.Signals(which).name} after {after:.2f} s"
    if code is None:
        return f"{when}: hung"
    if code not in (-which, 128 + which):
        return f"{when}: exit {code}: {output[-200:]!r}"
    if "Traceback" in output and "/dpo/" in output:
        return f"{when}: a traceback out of our files: {output[-300:]!r}"
    return None
