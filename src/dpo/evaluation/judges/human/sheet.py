"""Blind rating sheets: pairs of answers shuffled, sides hidden, with the key in a file of its own.

`<folder>/<sheet>/` holds for_raters/ (rating.html and rating.csv: what raters get), ratings/ (what they send back)
and key.json (which answer stands where; nothing a rater should see).
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpo.data.pair import Message
from dpo.data.sources.fields import as_text
from dpo.errors import DataError
from dpo.evaluation.judges.human.page import write_rating_page
from dpo.evaluation.judges.interface import PairItem
from dpo.pages.tables import to_csv
from dpo.records.files import write_json, write_text

COLUMNS = ("sheet", "row", "rater", "prompt", "answer_1", "answer_2")
RATED = ("helpfulness_1", "helpfulness_2", "preference", "comment")
NOTE = "helpfulness: 1 (useless) to 10; preference: 1, 2 or tie; leave empty what you do not rate"


def answer_digest(prompt: Sequence[Message], answer: str) -> str:
    """Names an answer to a prompt by its content; both are all a rater sees."""
    text = json.dumps([[[m.role, as_text(m)] for m in prompt], answer])
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:24]


@dataclass(frozen=True)
class KeyRow:
    """Which answers a row shows, by `answer_digest`, and the prompt they answer."""

    row: int
    group: str
    left: str
    right: str


@dataclass(frozen=True)
class Sheet:
    """A written sheet: its folder and its key."""

    folder: Path
    rows: tuple[KeyRow, ...]

    @property
    def name(self) -> str:
        """The id that raters' files carry."""
        return self.folder.name

    @property
    def for_raters(self) -> Path:
        """What raters get."""
        return self.folder / "for_raters"

    @property
    def ratings(self) -> Path:
        """Where what they send back belongs."""
        return self.folder / "ratings"


def write_sheet(root: Path, items: Sequence[PairItem], seed: int) -> Sheet:
    """Write a sheet of `items` under `root`, or find the one that was written of them; order and sides by `seed`."""
    digests = [(answer_digest(i.asked, i.first), answer_digest(i.asked, i.second)) for i in items]
    name = hashlib.sha256(json.dumps([sorted(map(sorted, digests)), seed]).encode()).hexdigest()[:10]
    draw = random.Random(f"{seed}:{name}")
    # From the contents alone, so that the order of the items leaves no trace.
    order = sorted(range(len(items)), key=lambda i: sorted(digests[i]))
    draw.shuffle(order)
    key, shown = [], []
    for number, i in enumerate(order, 1):
        item, (first, second) = items[i], digests[i]
        turned = draw.random() < 0.5
        left, right = (item.second, item.first) if turned else (item.first, item.second)
        sides = (second, first) if turned else (first, second)
        key.append(KeyRow(number, item.group if item.group is not None else item.question, *sides))
        messages = [{"role": m.role, "content": as_text(m)} for m in item.asked]
        shown.append({"row": number, "messages": messages, "left": left, "right": right})
    sheet = Sheet(root / name, tuple(key))
    if not (sheet.folder / "key.json").is_file():
        for folder in (sheet.for_raters, sheet.ratings):
            folder.mkdir(parents=True, exist_ok=True)
        write_rating_page(sheet.for_raters / "rating.html", name, shown)
        write_text(sheet.for_raters / "rating.csv", to_csv([*COLUMNS, *RATED], [_csv_row(name, row) for row in shown]))
        write_text(sheet.for_raters / "README.txt", f"{NOTE}\n")
        # Last: a sheet without a key was not finished, and is written again.
        write_json(sheet.folder / "key.json", {"seed": seed, "rows": [vars(row) for row in key]})
    return sheet


def read_sheets(root: Path) -> list[Sheet]:
    """All finished sheets under `root`; raises DataError for a key that is not as it was written."""
    found = []
    for path in sorted(root.glob("*/key.json")):
        try:
            rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
            found.append(Sheet(path.parent, tuple(KeyRow(**row) for row in rows)))
        except (ValueError, KeyError, TypeError) as fault:
            raise DataError(f"{path}: not the key of a rating sheet ({type(fault).__name__})") from None
    return found


def _csv_row(name: str, row: dict[str, Any]) -> dict[str, Any]:
    messages = row["messages"]
    turns = [m["content"] if len(messages) == 1 else f"{m['role']}: {m['content']}" for m in messages]
    prompt = "\n".join(turns)
    return {"sheet": name, "row": row["row"], "prompt": prompt, "answer_1": row["left"], "answer_2": row["right"]}
