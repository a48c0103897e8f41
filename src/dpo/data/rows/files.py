"""Rows out of JSON, JSON Lines, CSV, TSV, Parquet and Arrow files, one at a time; faults become Refusals."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from dpo.data.refusal import Reason, Refusal
from dpo.data.rows.json import array_rows, parse_json
from dpo.data.rows.open_file import LONGEST_ROW, PACKED, TOO_LONG, Lines, open_file, packing, whole
from dpo.errors import DataError

FORMATS = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".arrow")
BATCH_ROWS = 512


def file_format(path: Path) -> str | None:
    """One of FORMATS, with or without `.gz` or `.zst` behind it; None for anything else."""
    name = path.name.lower().removesuffix(packing(path))
    suffix = Path(name).suffix
    return suffix if suffix in FORMATS else None


def known_format(path: Path) -> str:
    """`file_format`, or a DataError that names what is allowed."""
    if (kind := file_format(path)) is None:
        allowed = f"{', '.join(FORMATS)}, each also with {' or '.join(PACKED)}"
        raise DataError(f"{path}: not a data file; allowed: {allowed}")
    return kind


def read_rows(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield (row number from 0, row); the row is a Refusal where it cannot be read.

    In JSON Lines the row number is the line number less one. No more than a row of LONGEST_ROW is held at a time.
    Raises DataError when the file as a whole cannot be read: absent, no file, an unknown format, a damaged archive,
    two columns of one name.
    """
    kind = known_format(path)
    readers = {".jsonl": _json_lines, ".json": _json, ".csv": _csv, ".tsv": _tsv}
    with open_file(path) as file:
        if kind in readers:
            yield from readers[kind](file, path)
        else:
            from dpo.data.rows.arrow import arrow_rows
            from dpo.data.rows.parquet import parquet_rows

            yield from {".parquet": parquet_rows, ".arrow": arrow_rows}[kind](whole(file, path), path)


def check_columns_differ(names: Sequence[str], path: Path) -> None:
    """Raise DataError where two columns have one name: which of them was meant?"""
    if twice := next((name for name in names if name and names.count(name) > 1), None):
        raise DataError(f"{path}: two columns are named {twice!r:.60}; rename or remove one")


def _json_lines(file: IO[bytes], path: Path) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(Lines(file.readline, b"\n")):
        if isinstance(line, Refusal):
            yield number, line
            continue
        if number == 0:
            line = line.removeprefix(b"\xef\xbb\xbf")
        if line and not line.isspace():
            yield number, parse_json(line)


def _json(file: Any, path: Path) -> Iterator[tuple[int, Any]]:
    """One array of rows; or rows line by line, which some hub repositories also name .json."""
    yield from enumerate(array_rows(file, path)) if _is_array(file) else _json_lines(file, path)


def _is_array(file: Any) -> bool:
    """Whether a JSON file that has not been read from begins with a bracket."""
    return bool(file.peek(64)[:64].removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"["))


def _csv(file: IO[bytes], path: Path, delimiter: str = ",") -> Iterator[tuple[int, Any]]:
    csv.field_size_limit(LONGEST_ROW)
    # Bytes that are not UTF-8 become lone surrogates here and are refused by the field that holds them.
    with io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="") as text:
        lines = _TextLines(Lines(text.readline, "\n"))
        yield from _csv_rows(csv.reader(lines, strict=True, delimiter=delimiter), path)


def _tsv(file: IO[bytes], path: Path) -> Iterator[tuple[int, Any]]:
    return _csv(file, path, "\t")


class _TooLong(Exception):
    """A line of a CSV file longer than a row may be."""


class _TextLines:
    """Lines for csv.reader, which goes on behind an exception."""

    def __init__(self, lines: Iterable[str | Refusal]) -> None:
        self._lines = iter(lines)

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = next(self._lines)
        if isinstance(line, Refusal):
            raise _TooLong
        return line


def _csv_rows(lines: Any, path: Path) -> Iterator[tuple[int, Any]]:
    header: list[str] | None = None
    number = 0
    while True:
        try:
            cells = next(lines)
        except StopIteration:
            return
        except (csv.Error, _TooLong) as error:
            refusal = (
                TOO_LONG
                if isinstance(error, _TooLong)
                else Refusal(Reason.unparsable, "", f"{error} near line {lines.line_num}")
            )
            if header is None:
                raise DataError(f"{path}: its header: {refusal}") from None
            yield number, refusal
            number += 1
            continue
        if header is None:
            header = cells
            check_columns_differ(header, path)
        elif cells:
            if cells == header:
                yield number, Refusal(Reason.unparsable, "", "the header once more")
            elif len(cells) == len(header):
                yield number, dict(zip(header, cells, strict=True))
            else:
                yield number, Refusal(Reason.unparsable, "", f"{len(cells)} cells under {len(header)} columns")
            number += 1


def editor_line(path: Path, number: int) -> int | None:
    """The line, from 1, at which an editor shows the row that `read_rows` calls `number`; None where a row is no line.

    A file of cells is read again up to there: a cell may hold several lines.
    """
    kind = known_format(path)
    if kind in (".json", ".jsonl"):
        with open_file(path) as file:
            listed = kind == ".json" and _is_array(file)
        return None if listed else number + 1
    if kind not in (".csv", ".tsv"):
        return None
    with open_file(path) as file, io.TextIOWrapper(file, encoding="utf-8-sig", errors="replace", newline="") as text:
        lines = csv.reader(text, delimiter="\t" if kind == ".tsv" else ",")
        began, rows = 1, -2
        try:
            for cells in lines:
                # The header is not counted, and an empty line is no row.
                rows += 1 if cells or rows == -2 else 0
                if cells and rows == number:
                    return began
                began = lines.line_num + 1
        except csv.Error:
            return None
    return None
