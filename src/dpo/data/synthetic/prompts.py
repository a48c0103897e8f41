"""Prompts to sample answers for: the shipped ones, or a file of yours."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
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
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        if not line.strip():
            continue
        try:
            text = line.decode().strip()
            row = json.loads(text) if text.startswith("{") else {"prompt": text}
            prompt, subject = row["prompt"], row.get("subject", row["prompt"])
            if not (isinstance(prompt, str) and prompt.strip() and isinstance(subject, str)):
                raise ValueError
            prompt.encode()
        except (ValueError, KeyError):
            raise DataError(f"{path}:{number}: needs UTF-8 text, or JSON with a text `prompt`") from None
        prompts.append(Prompt(prompt, subject))
    if not prompts:
        raise DataError(f"prompts={path}: no prompt in it")
    return prompts


def distinct(prompts: Iterable[Prompt]) -> list[Prompt]:
    """The first of prompts that are equal but for white space."""
    found: dict[str, Prompt] = {}
    for prompt in prompts:
        found.setdefault(" ".join(prompt.text.split()), prompt)
    return list(found.values())
