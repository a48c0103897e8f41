"""Answers to judge from a file: rows of prompt and response, rows of two answers to compare, or bare texts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpo.caches.entry import file_digest
from dpo.config.nearest import nearest
from dpo.data.pair import Message
from dpo.data.refusal import Refusal, RowRefused
from dpo.data.rows.files import read_rows
from dpo.data.rows.open_file import check_file
from dpo.data.sources.fields import check_columns
from dpo.data.sources.messages import messages, tools_of
from dpo.errors import DataError
from dpo.evaluation.judges.interface import Item, PairItem

PROMPTS = ("prompt", "question", "instruction", "input", "messages")
ANSWERS = ("response", "answer", "output", "completion")
PAIRS = (("output_1", "output_2"), ("response_a", "response_b"), ("answer_a", "answer_b"), ("chosen", "rejected"))
FIRST, SECOND = (1, "1", "first"), (2, "2", "second")

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Responses:
    """`items` are answers, or both answers of each pair, firsts then seconds; `pairs` is None for files of answers.

    `gold` is what people said, a row each: of answers whether they have the gold label, of pairs 1.0 where the first
    is better and 0.0 where the second is; None where it is not known.
    """

    items: list[Item]
    pairs: list[PairItem] | None
    gold: list[float | None]


def read_responses(
    path: Path, prompts: Path | None, text: str | None, gold: Sequence[str], limit: int | None
) -> Responses:
    """Read up to `limit` rows.

    Args:
        prompts: rows to join by the text of their prompt, for what the responses lack (IFEval's kwargs).
        text: the column to judge where rows are texts without a prompt.
        gold: columns with the gold label. Of pairs one, with 1 or 2 for the better answer. Of answers several may
            make up one label: it is given where any of them is true, and denied where all are there and false.
    """
    known = _by_prompt(prompts) if prompts else {}
    rows: list[tuple[str, Row]] = []
    for number, row in read_rows(path):
        if limit is not None and len(rows) >= limit:
            break
        where = f"{path}:{number + 1}"
        if isinstance(row, Refusal) or not isinstance(row, Mapping):
            raise DataError(f"{where}: {row if isinstance(row, Refusal) else 'not an object'}")
        rows.append((where, row))
    if not rows:
        raise DataError(f"{path}: no rows")
    columns = {name for _, row in rows for name in row}
    for name in gold:
        if name not in columns:
            raise DataError(f"{path}: gold=[{name}]: no row has this column{nearest(name, sorted(columns))}")
    paired = next((p for p in PAIRS if p[0] in rows[0][1] and p[1] in rows[0][1]), None) if text is None else None
    if paired is not None:
        pairs = [_pair(where, row, paired, known) for where, row in rows]
        items = [Item(f"{i}:{p.id}", p.prompt, _side(p, i), meta=p.meta, tools=p.tools) for i in (0, 1) for p in pairs]
        return Responses(items, pairs, [_better(where, row, gold) for where, row in rows] if gold else [])
    items = [_item(where, row, text, known) for where, row in rows]
    return Responses(items, None, [_label(where, row, gold) for where, row in rows] if gold else [])


def _by_prompt(path: Path) -> dict[str, Row]:
    found = {}
    for number, row in read_rows(path):
        if not isinstance(row, Mapping) or not isinstance(row.get("prompt"), str):
            raise DataError(f"{path}:{number + 1}: a row of prompts needs `prompt`")
        found[row["prompt"]] = row
    return found


def _turns(where: str, row: Row) -> tuple[Message, ...]:
    name = next((name for name in PROMPTS if row.get(name) is not None), None)
    if name is None:
        raise DataError(f"{where}: no prompt; one of {', '.join(PROMPTS)}")
    value = row[name]
    if isinstance(value, str):
        return (Message("user", value),)
    with refusals_raised(where):
        return tuple(messages(value, name))


def _tools(where: str, row: Row) -> str:
    with refusals_raised(where):
        check_columns(row)
        return tools_of(row)


@contextmanager
def refusals_raised(where: str) -> Iterator[None]:
    """What a reader of fields refuses is a DataError here."""
    try:
        yield
    except RowRefused as refused:
        raise DataError(f"{where}/{refused.refusal.field}: {refused.refusal}"[:300]) from None


def _text(where: str, row: Row, names: Sequence[str]) -> str:
    name = next((name for name in names if name in row), None)
    if name is None:
        raise DataError(f"{where}: no response; one of {', '.join(names)} (or two, such as {' and '.join(PAIRS[0])})")
    if not isinstance(row[name], str):
        raise DataError(f"{where}/{name}: needs a text")
    return row[name]


def _item(where: str, row: Row, text: str | None, known: Mapping[str, Row]) -> Item:
    if text is not None:
        return Item(where, (), _text(where, row, (text,)), group=where, meta=row)
    turns = _turns(where, row)
    meta = {**row, **known.get(turns[-1].content, {})}
    finished = bool(row["finished"]) if "finished" in row else True
    subject = row["subject"] if isinstance(row.get("subject"), str) else None
    group = str(row["group"]) if row.get("group") is not None else None
    return Item(where, turns, _text(where, row, ANSWERS), finished, subject, group, meta, _tools(where, row))


def _pair(where: str, row: Row, names: tuple[str, str], known: Mapping[str, Row]) -> PairItem:
    turns = _turns(where, row)
    first, second = (_text(where, row, (name,)) for name in names)
    meta = {**row, **known.get(turns[-1].content, {})}
    return PairItem(where, turns, first, second, None, meta, _tools(where, row))


def _side(pair: PairItem, number: int) -> str:
    return pair.second if number else pair.first


def _better(where: str, row: Row, gold: Sequence[str]) -> float | None:
    if len(gold) != 1:
        raise DataError(f"{where}: gold={list(gold)}: pairs have one gold column")
    value = row.get(gold[0])
    if value is None or value in FIRST or value in SECOND:
        return None if value is None else float(value in FIRST)
    raise DataError(f"{where}/{gold[0]}: must be 1 or 2, not {value!r}")


def _label(where: str, row: Row, gold: Sequence[str]) -> float | None:
    values = [row.get(name) for name in gold]
    if any(values):
        return 1.0
    return None if None in values else 0.0


def digest(path: Path) -> str:
    """Ten hex digits over the contents of a file."""
    check_file(path)
    return file_digest(path)[:10]
