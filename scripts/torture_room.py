"""A disk that is really full, and an output nobody reads: closed, a broken pipe, /dev/full."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import tiny
from torture_calls import refused, untrue
from torture_process import end, spawn
from torture_world import Case, NotHereError, World

MEGABYTE = 2**20


def disks(world: World) -> list[Case]:
    """Runs whose outputs, or whose cache, lie on a disk of a size drawn between nothing and enough."""
    if os.geteuid() != 0 or not _mounts(world.root):
        raise NotHereError("mounting a small tmpfs needs more rights")
    cases = []
    for number in range(40):
        for place in ("outputs", "cache"):
            name = f"disks/{place}/{number}"
            cases.append(Case(name, lambda cwd, p=place, n=name: _full(world, p, n, cwd)))
    return cases


@contextmanager
def mounted(folder: Path, size: int) -> Iterator[None]:
    """A tmpfs of `size` bytes at `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], check=True, capture_output=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", folder], check=True, capture_output=True)


def _mounts(root: Path) -> bool:
    try:
        with mounted(root / "tried", MEGABYTE):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False


def _full(world: World, place: str, name: str, cwd: Path) -> str | None:
    size = int(world.draw(name).uniform(0.004, 1.1 if place == "outputs" else 0.15) * MEGABYTE)
    with mounted(cwd / place, size):
        ended = world.run("train", world.words("lora"), cwd)
        if ended.code == 0:
            return world.same(cwd, "lora")
        if wrong := refused(ended, (7,)) or untrue(cwd):
            return f"{size} bytes for {place}: {wrong}"
        bigger = ["mount", "-o", f"remount,size={64 * MEGABYTE}", str(cwd / place)]
        subprocess.run(bigger, check=True, capture_output=True)
        # A disk so full that no run.json could be written leaves no run.
        wrong = world.completes(cwd, "lora")
        return wrong and f"{size} bytes for {place}, then enough: {wrong}"


READERS = ("closed", "gone", "full")


def outputs(world: World) -> list[Case]:
    """Real commands whose stdout, or both outputs, are closed, without a reader, or full."""
    verbs = ("train", "train", "status", "report", "evaluate")
    return [
        Case(f"outputs/{verb}-{number}/{how}/{both}", lambda cwd, v=verb, h=how, b=both: _unread(world, v, h, b, cwd))
        for number, verb in enumerate(verbs)
        for how in READERS
        for both in (("both",) if number == 1 else ("stdout",))
    ]


def _unread(world: World, verb: str, how: str, both: str, cwd: Path) -> str | None:
    """Training goes on and ends in the same adapter; other verbs end in words, if anybody reads them."""
    from torture_damage import command, finished_run

    words = world.words("lora")
    work = cwd
    if verb != "train":
        work = finished_run(world, world.options[0])
        words = [str(tiny.folders(work)[0])] if verb != "status" else []
        if verb == "evaluate":
            # As the run was evaluated before: other settings would be refused, whoever reads it.
            _, words, _ = command(world, verb, world.options[0], work)
    said = cwd / "said.txt"
    own = {"DPO_OUTPUTS": str(work / "outputs"), "DPO_CACHE": str(work / "cache")}
    reader, writer = os.pipe()
    os.close(reader)
    out = os.open("/dev/full", os.O_WRONLY) if how == "full" else writer
    with said.open("wb") as file:
        close = (lambda: os.close(1)) if how == "closed" else None
        errors = out if both == "both" else file
        process = spawn(verb, words, cwd, own, stdout=out, stderr=errors, preexec_fn=close)
        code = end(process)
    for descriptor in {out, writer}:
        os.close(descriptor)
    output = said.read_text(errors="replace")
    if code is None:
        return "hung"
    if "Traceback" in output:
        return f"traceback, exit {code}: {output[-300:]!r}"
    if verb == "train":
        return world.same(cwd, "lora") if code == 0 else f"exit {code}: {output[-200:]!r}"
    # A full device is a full disk; a reader that has gone is no fault of the command.
    if code not in ((0, 7) if how == "full" else (0, 141)):
        return f"exit {code}: {output[-200:]!r}"
    return None
