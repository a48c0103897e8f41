"""Rows out of Parquet and Arrow files; the latter are what `datasets` writes with save_to_disk."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from dpo.data.rows.files import BATCH_ROWS, check_columns_differ
from dpo.data.rows.open_file import LONGEST_ROW, TOO_LONG
from dpo.errors import DataError

# Bytes of rows that are read at a time.
BATCH_BYTES = 4 * LONGEST_ROW


def parquet_rows(file: IO[bytes], path: Path) -> Iterator[tuple[int, Any]]:
    """(number, row) of a Parquet file."""
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(file)
        check_columns_differ(table.schema_arrow.names, path)
        about = table.metadata
        groups = [about.row_group(index) for index in range(about.num_row_groups)]
        widest = max((group.total_byte_size // max(1, group.num_rows) for group in groups), default=0)
        rows = max(1, min(BATCH_ROWS, BATCH_BYTES // max(1, widest)))
        yield from _rows(table.iter_batches(batch_size=rows))
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a readable Parquet file ({_first(error)})") from None


def arrow_rows(file: IO[bytes], path: Path) -> Iterator[tuple[int, Any]]:
    """(number, row) of an Arrow file, of either of its two kinds."""
    import pyarrow

    try:
        kind = file.read(6)
        file.seek(0)
        if kind == b"ARROW1":
            whole = pyarrow.ipc.open_file(file)
            batches = (whole.get_batch(index) for index in range(whole.num_record_batches))
            names = whole.schema.names
        else:
            batches = pyarrow.ipc.open_stream(file)
            names = batches.schema.names
        check_columns_differ(names, path)
        yield from _rows(part for batch in batches for part in _parts(batch))
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a readable Arrow file ({_first(error)})") from None


def _first(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _parts(batch: Any) -> Iterator[Any]:
    for start in range(0, batch.num_rows, BATCH_ROWS):
        yield batch.slice(start, BATCH_ROWS)


def _rows(batches: Iterable[Any]) -> Iterator[tuple[int, Any]]:
    number = 0
    for batch in batches:
        for row in _batch_rows(batch):
            yield number, row
            number += 1


def _batch_rows(batch: Any) -> Iterator[Any]:
    whole = _pylist(batch) if batch.nbytes <= LONGEST_ROW else None
    if whole is not None:
        yield from whole
        return
    for index in range(batch.num_rows):
        if batch.slice(index, 1).nbytes > LONGEST_ROW:
            yield TOO_LONG
        else:
            yield {name: _cell(batch.column(name)[index]) for name in batch.schema.names}


def _pylist(batch: Any) -> list[Any] | None:
    """The rows, or None when Python has no value for a cell: then each is looked at by itself."""
    try:
        return batch.to_pylist()
    except Exception:  # noqa: BLE001 - pyarrow's own, UnicodeDecodeError, OverflowError, a time zone nobody knows
        return None


def _cell(scalar: Any) -> Any:
    try:
        return scalar.as_py()
    except UnicodeDecodeError:
        if not hasattr(scalar, "as_buffer"):
            return "\udcff"  # somewhere inside a nested value: refused as invalid UTF-8, like the plain case
        return scalar.as_buffer().to_pybytes().decode(errors="surrogateescape")
    except Exception:  # noqa: BLE001 - such as a date beyond the year 9999, in a column that may not even be read
        return scalar  # no text and no number: refused by the field that wants one
