"""Prompts to sample answers for: the shipped ones, or a file of yours."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path

import yaml

from dpo.errors import DataError


@dataclass(frozen=True)
class Prompt:
    """A user message; prompts of one `subject` stay in one split, and a good answer is about it."""

    text: str
    subject: str


def shipped() -> list[Prompt]:
    """Every template of prompts.yaml with every subject of its kind, in one fixed shuffled order."""
    kinds = yaml.safe_load((Path(__file__).parent / "prompts.yaml").read_text())
    prompts = [
        Prompt(template.format(subject), subject)
        for kind in kinds.values()
        for subject in kind["subjects"]
        for template in kind["templates"]
    ]
    random.Random(0).shuffle(prompts)
    return prompts


def from_file(path: Path) -> list[Prompt]:
    """One prompt a line: plain text, or JSON with `prompt` and optionally `subject`. Raises DataError."""
    if not path.is_file():
        raise DataError(f"prompts={path}: no such file")
    prompts = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        if not line.lstrip().startswith("{"):
            prompts.append(Prompt(line.strip(), line.strip()))
            continue
        try:
            row = json.loads(line)
            prompts.append(Prompt(str(row["prompt"]), str(row.get("subject", row["prompt"]))))
        except (ValueError, KeyError):
            raise DataError(f"{path}:{number}: needs JSON with a `prompt`, or plain text") from None
    if not prompts:
        raise DataError(f"prompts={path}: no prompt in it")
    return prompts
