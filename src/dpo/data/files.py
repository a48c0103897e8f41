"""Rows out of JSON, JSON Lines, CSV and Parquet files, gzipped or not, one at a time; faults become Refusals."""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from dpo.data.refusal import Reason, Refusal
from dpo.data.sources.local import CsvRow
from dpo.errors import DataError

FORMATS = (".jsonl", ".json", ".csv", ".parquet")
BATCH_ROWS = 512


def file_format(path: Path) -> str | None:
    """`.json`, `.jsonl`, `.csv` or `.parquet`, with or without `.gz` behind it; None for anything else."""
    name = path.name.lower().removesuffix(".gz")
    suffix = Path(name).suffix
    return suffix if suffix in FORMATS else None


def read_rows(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield (row number from 0, row); the row is a Refusal where it cannot be read.

    In JSON Lines the row number is the line number less one. Raises DataError when the file as a whole cannot
    be read: absent, an unknown format, a damaged archive.
    """
    kind = file_format(path)
    if kind is None:
        raise DataError(f"{path}: not a data file; allowed: {', '.join(FORMATS)}, each also with .gz")
    reader = {".jsonl": _json_lines, ".json": _json, ".csv": _csv, ".parquet": _parquet}[kind]
    try:
        with _open(path) as file:
            yield from reader(file, path)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path}: damaged gzip archive ({error})") from None


def _open(path: Path) -> IO[bytes]:
    return gzip.open(path, "rb") if path.name.lower().endswith(".gz") else path.open("rb")  # type: ignore[return-value]


def _json_lines(file: IO[bytes], path: Path) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(file):
        if number == 0:
            line = line.removeprefix(b"\xef\xbb\xbf")
        if not line.isspace():
            yield number, _parse_json(line)


def _parse_json(line: bytes) -> Any:
    try:
        return json.loads(line.decode())
    except UnicodeDecodeError as error:
        return Refusal(Reason.invalid_utf8, "", f"byte 0x{error.object[error.start]:02x} at {error.start}")
    except (ValueError, RecursionError) as error:
        return Refusal(Reason.unparsable, "", f"{error}" if str(error) else type(error).__name__)


def _json(file: IO[bytes], path: Path) -> Iterator[tuple[int, Any]]:
    """One array of rows; or rows line by line, which some hub repositories also name .json."""
    start = file.read(64).removeprefix(b"\xef\xbb\xbf").lstrip()
    file.seek(0)
    if not start.startswith(b"["):
        yield from _json_lines(file, path)
        return
    whole = _parse_json(file.read().removeprefix(b"\xef\xbb\xbf"))
    if isinstance(whole, Refusal):
        raise DataError(f"{path}: {whole}")
    yield from enumerate(whole)


def _csv(file: IO[bytes], path: Path) -> Iterator[tuple[int, Any]]:
    csv.field_size_limit(2**31 - 1)
    # Bytes that are not UTF-8 become lone surrogates here and are refused by the field that holds them.
    with io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="") as text:
        yield from _csv_rows(csv.reader(text, strict=True))


def _csv_rows(lines: Any) -> Iterator[tuple[int, Any]]:
    header: list[str] | None = None
    number = 0
    while True:
        try:
            cells = next(lines)
        except StopIteration:
            return
        except csv.Error as error:
            yield number, Refusal(Reason.unparsable, "", f"{error} near line {lines.line_num}")
            number += 1
            continue
        if header is None:
            header = cells
        elif cells:
            if len(cells) == len(header):
                yield number, CsvRow(zip(header, cells, strict=True))
            else:
                yield number, Refusal(Reason.unparsable, "", f"{len(cells)} cells under {len(header)} columns")
            number += 1


def _parquet(file: IO[bytes], path: Path) -> Iterator[tuple[int, Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(io.BytesIO(file.read()) if path.name.lower().endswith(".gz") else file)
        number = 0
        for batch in table.iter_batches(batch_size=BATCH_ROWS):
            for row in _batch_rows(batch):
                yield number, row
                number += 1
    except pyarrow.ArrowException as error:
        raise DataError(f"{path}: not a readable Parquet file ({str(error).splitlines()[0]})") from None


def _batch_rows(batch: Any) -> list[Any]:
    try:
        return batch.to_pylist()
    except UnicodeDecodeError:
        return [
            {name: _cell(batch.column(name)[index]) for name in batch.schema.names} for index in range(batch.num_rows)
        ]


def _cell(scalar: Any) -> Any:
    try:
        return scalar.as_py()
    except UnicodeDecodeError:
        if not hasattr(scalar, "as_buffer"):
            return "\udcff"  # somewhere inside a nested value: refused as invalid UTF-8, like the plain case
        return scalar.as_buffer().to_pybytes().decode(errors="surrogateescape")
