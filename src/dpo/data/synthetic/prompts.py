"""Prompts to sample answers for: the shipped ones, or a file of yours."""

from __future__ import annotations

import gzip
import json
import random
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from dpo.errors import DataError


@dataclass(frozen=True)
class Prompt:
    """A user message; prompts of one `subject` stay in one split, and a good answer is about it.

    `group` holds together what is not independent, such as paraphrases; `meta` is all else its line gave, for judges.
    """

    text: str
    subject: str
    group: str | None = None
    meta: Mapping[str, Any] = field(default_factory=dict, hash=False)


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
    """One prompt a line, gzipped or not: plain text, or JSON with `prompt`. Raises DataError.

    The JSON may also give `subject`, `group` and whatever a judge reads, such as IFEval's instruction_id_list and
    kwargs.
    """
    if not path.is_file():
        raise DataError(f"prompts={path}: no such file")
    whole = path.read_bytes()
    if path.name.lower().endswith(".gz"):
        try:
            whole = gzip.decompress(whole)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise DataError(f"{path}: damaged gzip archive ({error})") from None
    prompts = []
    for number, line in enumerate(whole.splitlines(), 1):
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
        group = None if row.get("group") is None else str(row["group"])
        meta = {key: value for key, value in row.items() if key not in ("prompt", "subject", "group")}
        prompts.append(Prompt(prompt, subject, group, meta))
    if not prompts:
        raise DataError(f"prompts={path}: no prompt in it")
    return prompts


def distinct(prompts: Iterable[Prompt]) -> list[Prompt]:
    """The first of prompts that are equal but for white space."""
    found: dict[str, Prompt] = {}
    for prompt in prompts:
        found.setdefault(" ".join(prompt.text.split()), prompt)
    return list(found.values())
