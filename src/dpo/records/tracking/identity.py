"""Who a run is, the same in every tracker and in whatever comes back to it later."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpo.config.identity import Role, role

LONGEST = 64
# Words of a command line that make no other run, and options that only say that something is a file of the user's.
ASIDE = ("hydra", "hardware")
PLACES = ("custom", "local")
SHORT = {"learning_rate": "lr", "batch_size": "batch", "max_steps": "steps"}


@dataclass(frozen=True)
class Identity:
    """`id` begins as a hash of where the run directory is; `group` is its sweep. A `known` run has been tracked before:
    it keeps the name and the id it had then, wherever its directory has been moved."""

    name: str
    id: str
    group: str | None
    git: Mapping[str, Any] | None = None
    known: bool = False


def identify(folder: Path, record: Mapping[str, Any], group: str | None, words: Iterable[str] = ()) -> Identity:
    """The identity of a run directory's run. `words`: the overrides it was asked for with, which name it."""
    group, git = group or record.get("parent"), record.get("git")
    if before := record.get("tracked"):
        return Identity(before["name"], before["id"], group, git, known=True)
    place = "/".join(folder.absolute().parts[-3:])
    # A sweep's folder says already what its jobs differ in.
    name = folder.name if record.get("parent") else _name(folder, words)
    return Identity(name, hashlib.sha256(place.encode()).hexdigest()[:16], group, git)


def _name(folder: Path, words: Iterable[str]) -> str:
    """`beta0.05_rank16-20260101-120000`: what was asked for, and when; without either the folder's own name."""
    asked: dict[str, str] = {}
    for text in words:
        key, _, value = text.lstrip("+").partition("=")
        if key.startswith(ASIDE) or role(key) in (Role.start, Role.when) or value in PLACES:
            continue
        last = key.rpartition(".")[2]
        # A group's option and a path speak for themselves, the latter by its end.
        before = SHORT.get(last, last) if ("." in key and last != "path") or key == "seed" else ""
        word = re.sub(r"[^A-Za-z0-9._+-]+", "-", before + value.strip("'\"").rstrip("/").rpartition("/")[2]).strip("-")
        if word:
            asked[key] = word
    # How it was trained before what was trained: lists of runs show the beginning.
    asked = dict(sorted(asked.items(), key=lambda item: not item[0].startswith(("dpo", "lora", "seed"))))
    short = folder.parent.name if folder.parent.name != "run" else ""
    for word in asked.values():
        if len(short) + len(word) < LONGEST:
            short += f"_{word}" if short else word
    started = re.match(r"\d{8}-\d{6}", folder.name)
    return f"{short}-{started[0]}" if short and started else folder.name
