"""Verbs that write: what each is given, what it must leave, and every file call it makes when nobody disturbs it."""

from __future__ import annotations

import shutil
from functools import cache, partial
from pathlib import Path

import torture_preload
from torture_damage import Target, command, expected
from torture_preload import Arm, Call
from torture_process import Ended
from torture_results import Products, products
from torture_world import World

WORKS = ("train", "evaluate", "export")
MADE = ("evaluation/", "exported/")
"""Where the products lie that must be the same after a fault; the ledger counts what was done twice."""


def begin(world: World, work: str, cwd: Path) -> None:
    """What is there before the verb is called."""
    if work != "train":
        shutil.copytree(world.template(world.options[0]), cwd, dirs_exist_ok=True)


def do(world: World, work: str, cwd: Path, arm: Arm | None = None) -> Ended:
    """Call the verb."""
    verb, words, stdin = command(world, work, world.options[0], cwd)
    return world.run(verb, words, cwd, stdin=stdin, arm=arm)


def again(world: World, work: str, cwd: Path) -> str | None:
    """None when the same verb, called once more after a fault, leaves what an undisturbed call does."""
    if work == "train":
        return world.completes(cwd, world.options[0])
    return right(world, work, cwd, do(world, work, cwd))


def right(world: World, work: str, cwd: Path, ended: Ended) -> str | None:
    """None when the verb ended well and left what an undisturbed call leaves."""
    option = world.options[0]
    if ended.code != 0:
        return ended.fault() or f"exit {ended.code} when called again: {ended.output[-300:]!r}"
    if work == "train":
        return world.same(cwd, option)
    template = world.template(option)
    wanted = expected(world, Target("run", option, template, partial(Path), ()), work)
    kept = {name: words for name, words in wanted.tokens.items() if any(part in name for part in MADE)}
    assert kept, f"{work} leaves nothing"
    return products(template, cwd, ended).difference(Products(0, kept))


@cache
def calls(world: World, work: str) -> list[Call]:
    """Every file call under outputs/ and cache/ of an undisturbed call, reading ones included."""
    cwd, trace = world.root / "traced" / work, world.root / f"{work}.trace"
    cwd.mkdir(parents=True)
    begin(world, work, cwd)
    everything = torture_preload.CHANGES | torture_preload.READ
    do(world, work, cwd, Arm(f"{cwd}/", everything, trace=str(trace)))
    found = torture_preload.read_trace(trace, f"{cwd}/")
    assert found, "the library saw nothing"
    return found
