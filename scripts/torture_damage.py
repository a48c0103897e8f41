"""Every file of an interrupted run, of a finished one, of the caches and of the inputs, damaged in every way, before
every verb that reads it: the damage is found and named, or the result is the undisturbed one."""

from __future__ import annotations

import os
import random
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

import tiny
from torture_results import Products, Told, products, wrong_result
from torture_world import Case, World, interleave

# What a verb is given on a tiny run; {run} is its folder.
SMALL = (
    "evaluation.prompts=4", "evaluation.max_new_tokens=6", "evaluation.resamples=200",
    "evaluation.divergence_prompts=2", "hardware=cpu",
)  # fmt: skip
EVALUATE = ("evaluate", "{run}", *SMALL[:-1])
VERBS: dict[str, tuple[str, ...]] = {
    "evaluate": EVALUATE,
    "compare": ("compare", "{run}", "resamples=200"),
    "report": ("report", "{run}"),
    "judge": ("judge", "{run}", "judge=[tone]"),
    "export": ("export", "{run}", "out={cwd}/exported", "resamples=200"),
    "audit-adapter": ("audit", "{run}/adapter"),
    "audit-export": ("audit", "{run}/export/fp16"),
    "status": ("status",),
    "chat": ("chat", "{run}"),
    "continue": ("train", "resume={run}"),
}
OF_INTERRUPTED = ("train", "status", "report")
OF_FINISHED = ("evaluate", "compare", "report", "judge", "export", "audit-adapter", "audit-export", "status", "chat")
OF_CACHE = ("fresh", "evaluate", "export")
OF_INPUTS = ("fresh", "evaluate", "export", "chat")


def _digit(data: bytes, draw: random.Random) -> bytes:
    """Another digit in a text, else one flipped bit."""
    places = [m.start() for m in re.finditer(rb"[0-9]", data)] if b"\0" not in data[:4096] else []
    changed = bytearray(data)
    if places:
        at = draw.choice(places)
        changed[at] = draw.choice([digit for digit in b"123456789" if digit != data[at]])
    elif data:
        changed[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def _cut(data: bytes, draw: random.Random) -> bytes:
    """Whole lines gone from the end, which still parses, or the last third."""
    lines = data.splitlines(keepends=True)
    if len(lines) > 2 and draw.random() < 0.5:
        return b"".join(lines[: draw.randrange(1, len(lines))])
    return data[: len(data) * 2 // 3]


CONTENT: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "truncated": _cut,
    "emptied": lambda data, draw: b"",
    "zeroed": lambda data, draw: bytes(len(data)),
    "digit": _digit,
}
INPUT_NAMES = ("model", "data", "base", "tokenizer", "template")
WAYS = (*CONTENT, "deleted", "swapped", "folder", "fifo")


def damage(path: Path, way: str, other: Path | None, draw: random.Random) -> bool:
    """Do it; False when there is nothing that it would change."""
    if way in CONTENT:
        before = path.read_bytes()
        after = CONTENT[way](before, draw)
        path.write_bytes(after)
        return after != before
    if way == "swapped":
        if other is None or not other.is_file() or other.read_bytes() == path.read_bytes():
            return False
        shutil.copyfile(other, path)
        return True
    path.unlink()
    if way == "folder":
        path.mkdir()
    elif way == "fifo":
        os.mkfifo(path)
    return True


@dataclass(frozen=True)
class Target:
    """Files of one kind: the working folder they are copied from, where another run's lie, and who reads them."""

    kind: str
    option: str
    template: Path
    other: Callable[[], Path]
    verbs: tuple[str, ...]


def corruption(world: World) -> list[Case]:
    """Every file, way and verb, the kinds of files in turn."""
    lists = []
    for target in _targets(world):
        files = sorted(_files(world, target))
        cases = [
            Case(name, lambda cwd, t=target, f=file, w=way, v=verb, n=name: _check(world, t, f, w, v, n, cwd))
            for file in files
            for way in WAYS
            for verb in target.verbs
            if (name := f"corruption/{target.kind}/{target.option}/{verb}/{way}/{file}")
        ]
        world.draw(target.kind + target.option).shuffle(cases)
        lists.append(cases)
    return interleave(*lists)


def _targets(world: World) -> list[Target]:
    targets = []
    for option in world.options:
        interrupted, finished = world.interrupted(option), finished_run(world, option)
        another = partial(finished_run, world, option, "seed=3")
        targets += [
            Target("interrupted", option, interrupted, partial(world.interrupted, option, "seed=3"), OF_INTERRUPTED),
            Target("finished", option, finished, another, OF_FINISHED),
            Target("cache", option, finished, another, OF_CACHE),
        ]
    option = world.options[0]
    return [*targets, Target("inputs", option, finished_run(world, option), Path, OF_INPUTS)]


def _files(world: World, target: Target) -> list[str]:
    """The files of a target, relative to the run, to the cache, or to the world."""
    root = _root(world, target, target.template)
    if target.kind == "inputs":
        return [str(p.relative_to(root)) for p in [*world.model.rglob("*"), world.pairs] if p.is_file()]
    return [str(p.relative_to(root)) for p in root.rglob("*") if p.is_file() and p.stat().st_size > 0]


def _root(world: World, target: Target, cwd: Path) -> Path:
    if target.kind == "inputs":
        return world.root
    return cwd / "cache" if target.kind == "cache" else tiny.folders(cwd)[0]


_FINISHED: dict[tuple[str, ...], Path] = {}


def finished_run(world: World, option: str, *more: str) -> Path:
    """A working folder with a run that was trained, evaluated, exported and reported; to be copied."""
    known = (option, *more)
    if known not in _FINISHED:
        cwd = world.root / "templates" / f"{option}-finished{len(more)}"
        shutil.copytree(world.template(option, *more), cwd)
        run = tiny.folders(cwd)[0]
        for verb, *words in (EVALUATE, ("export", "{run}", "resamples=200"), ("report", "{run}")):
            ended = world.run(verb, [word.format(run=run) for word in words], cwd)
            assert ended.code == 0, ended.output
        _FINISHED[known] = cwd
    return _FINISHED[known]


def command(world: World, verb: str, option: str, cwd: Path) -> tuple[str, list[str], str]:
    """(verb, its words, what it reads from stdin) for the run under `cwd`."""
    if verb == "train":
        return "train", world.words(option), ""
    if verb == "fresh":
        return "train", world.words(option, "resume=never"), ""
    name, *words = VERBS[verb]
    (run,) = tiny.folders(cwd)
    return name, [word.format(run=run, cwd=cwd) for word in words], "the cat sat\n" if verb == "chat" else ""


def expected(world: World, target: Target, verb: str) -> Products:
    """What the verb leaves on an undamaged copy, without what differs from one time to the next."""
    return _expected(world, replace(target, kind="cache" if target.kind == "cache" else "run", other=Path), verb)


@cache
def _expected(world: World, target: Target, verb: str) -> Products:
    found = []
    for number in range(2):
        cwd = world.root / "expected" / str(number)
        shutil.rmtree(cwd, ignore_errors=True)
        shutil.copytree(target.template, cwd)
        name, words, stdin = command(world, verb, target.option, cwd)
        ended = world.run(name, words, cwd, stdin=stdin)
        found.append(products(target.template, cwd, ended))
    return found[0].steady(found[1])


def _check(world: World, target: Target, file: str, way: str, verb: str, name: str, cwd: Path) -> str | None:
    wanted = expected(world, target, verb)
    shutil.copytree(target.template, cwd, dirs_exist_ok=True)
    path = _root(world, target, cwd) / file
    kept = cwd.with_name(f"{cwd.name}.kept")
    # The inputs are where every case looks for them: they are put back.
    if target.kind == "inputs":
        shutil.copy2(path, kept)
    try:
        other = _root(world, target, target.other()) / file if way == "swapped" else None
        verb_name, words, stdin = command(world, verb, target.option, cwd)
        if not damage(path, way, other, world.draw(name)):
            return None
        ended = world.run(verb_name, words, cwd, stdin=stdin)
    finally:
        if target.kind == "inputs":
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
            kept.rename(path)
    told = Told.of(ended, wanted, cwd)
    lines = told.any(path.name, _checkpoint(file)) if target.kind in ("interrupted", "finished") else False
    if verb in ("train", "fresh") and ended.code == 0:
        if target.kind == "inputs" and verb == "fresh":
            # A run that is made anew is made of what is there.
            return ended.fault()
        newest = max(tiny.folders(cwd), key=lambda folder: folder.stat().st_mtime)
        wrong = ended.fault() or world.same(cwd, target.option, newest)
        return None if lines and wrong is not None and "metric lines" in wrong else wrong
    if verb.startswith("audit") and path.suffix == ".safetensors" and ended.code == 0 and _audited(verb, file):
        return "the audit passes other weights"
    if target.kind == "cache":
        # What is said of a rebuilt cache is not its result.
        wanted = Products(wanted.code, {name: words for name, words in wanted.tokens.items() if name != "output"})
    # A refusal may name the folder; what goes on must name the file, and results of inputs and caches never change.
    folder = path.parent.name if "/" in file else path.name
    refused = told.any(path.name, folder, _checkpoint(file), *(INPUT_NAMES if target.kind == "inputs" else ()))
    return wrong_result(ended, products(target.template, cwd, ended), wanted, lines, refused)


def _audited(verb: str, file: str) -> bool:
    return file.startswith(verb.removeprefix("audit-"))


def _checkpoint(file: str) -> str:
    """The folder of a checkpoint's file, else the file."""
    parts = Path(file).parts
    return parts[1] if parts[0] == "checkpoints" else parts[-1]
