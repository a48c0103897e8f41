"""Prompts to sample answers for: the shipped ones, or a file of yours."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import yaml

from dpo.data.refusal import Refusal, RowRefused
from dpo.data.rows.json import parse_json
from dpo.data.rows.open_file import Lines, open_file
from dpo.data.sources.fields import TOOLS, check_columns, nothing
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
    """One prompt a line, packed (.gz, .zst) or not: plain text, or JSON with `prompt`. Raises DataError.

    The JSON may also give `subject`, `group` and whatever a judge reads, such as IFEval's instruction_id_list and
    kwargs.
    """
    prompts: list[Prompt] = []
    with open_file(path) as file:
        for number, line in enumerate(_lines(file), 1):
            if isinstance(line, Refusal):
                raise DataError(f"{path}:{number}: {line}")
            if line.strip():
                prompts.append(_prompt(line, f"{path}:{number}"))
    if not prompts:
        raise DataError(f"prompts={path}: no prompt in it")
    return prompts


def _lines(file: IO[bytes]) -> Iterator[bytes | Refusal]:
    """Lines, whatever ends them."""
    for line in Lines(file.readline, b"\n"):
        yield from [line] if isinstance(line, Refusal) else line.splitlines()


def _prompt(line: bytes, where: str) -> Prompt:
    try:
        text = line.decode().strip()
        row = parse_json(line.strip()) if text.startswith("{") else {"prompt": text}
        if isinstance(row, Refusal):
            raise ValueError(str(row))
        prompt, subject = row["prompt"], row.get("subject", row["prompt"])
        if not (isinstance(prompt, str) and prompt.strip() and isinstance(subject, str)):
            raise ValueError
        prompt.encode()
        check_columns(row)
        if other := next((key for key in ("messages", "system", *TOOLS) if not nothing(row.get(key))), None):
            raise ValueError(f"`{other}` is not read here: a prompt is one text")
    except RowRefused as refused:
        raise DataError(f"{where}/{refused.refusal.field}: {refused.refusal}"[:300]) from None
    except (ValueError, KeyError) as error:
        why = f" ({error})" if type(error) is ValueError and str(error) else ""
        raise DataError(f"{where}: needs UTF-8 text, or JSON with a text `prompt`{why}"[:300]) from None
    group = None if row.get("group") is None else str(row["group"])
    meta = {key: value for key, value in row.items() if key not in ("prompt", "subject", "group")}
    return Prompt(prompt, subject, group, meta)


def distinct(prompts: Iterable[Prompt]) -> list[Prompt]:
    """The first of prompts that are equal but for white space."""
    found: dict[str, Prompt] = {}
    for prompt in prompts:
        found.setdefault(" ".join(prompt.text.split()), prompt)
    return list(found.values())
