"""Rows out of Parquet files, read so that a small file cannot fill the memory with what it unpacks to."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from dpo.data.rows.arrow import batch_rows, check_types, first_line
from dpo.data.rows.files import BATCH_ROWS, check_columns_differ
from dpo.data.rows.open_file import LONGEST_ROW
from dpo.errors import DataError

# Bytes of rows that are read at a time.
BATCH_BYTES = 4 * LONGEST_ROW
# Bytes of a row group: what one batch of it may hold where its rows are very uneven.
LONGEST_GROUP = 4 << 30
# Bytes up to which a column of a row group is not looked at more closely.
HARMLESS = 1 << 30
DICTIONARY = {"PLAIN_DICTIONARY", "RLE_DICTIONARY"}
# Values take the beginning of the one before them, so that each may be as long as all that is stored.
SHARED_PREFIX = "DELTA_BYTE_ARRAY"
# What pyarrow can read as a dictionary with places in it.
KEPT = DICTIONARY | {"PLAIN", "RLE", "BIT_PACKED"}
POINTER = 8


def parquet_rows(file: IO[bytes], path: Path) -> Iterator[tuple[int, Any]]:
    """(number, row) of a Parquet file; raises DataError when it is none, or a row group is too large."""
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(file)
        check_columns_differ(table.schema_arrow.names, path)
        check_types(table.schema_arrow, path)
        yield from enumerate(row for batch in _batches(file, table, path) for row in batch_rows(batch))
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a readable Parquet file ({first_line(error)})") from None


def _batches(file: IO[bytes], table: Any, path: Path) -> Iterator[Any]:
    import pyarrow.parquet

    for index in range(table.metadata.num_row_groups):
        rows, kept = _way(table, index, f"{path}: row group {index}")
        reader = table
        if kept:
            reader = pyarrow.parquet.ParquetFile(file, metadata=table.metadata, read_dictionary=kept)
        yield from reader.iter_batches(batch_size=rows, row_groups=[index])


def _way(table: Any, index: int, where: str) -> tuple[int, list[str]]:
    """How to read a row group: rows at a time, and the columns whose texts stay places in a dictionary, so that one
    long text which a million rows repeat is there once."""
    group, kept = table.metadata.row_group(index), []
    most, weight = BATCH_ROWS, 0
    for number in range(group.num_columns):
        column, form = group.column(number), table.schema.column(number)
        stored, values, encodings = column.total_uncompressed_size, column.num_values, set(column.encodings)
        weight += max(stored, values * max(POINTER, form.length or 0))
        if form.physical_type != "BYTE_ARRAY" or values * stored <= HARMLESS:
            continue
        if SHARED_PREFIX in encodings or (encodings & DICTIONARY and not encodings <= KEPT):
            if form.max_repetition_level:
                words = f"lists of texts in {', '.join(sorted(encodings))}, which may unpack without bound"
                raise DataError(f"{where}: column {form.path}: {words}\nwrite it in dictionary or plain encoding")
            most = min(most, BATCH_BYTES // stored)
        elif encodings & DICTIONARY:
            kept.append(form.path)
    if weight > LONGEST_GROUP:
        raise DataError(
            f"{where}: {weight / 2**30:,.0f} GB when unpacked; at most {LONGEST_GROUP >> 30} are read at a time\n"
            "write it in smaller ones, as in to_parquet(..., row_group_size=10000)"
        )
    return max(1, min(most, BATCH_BYTES * group.num_rows // max(1, weight))), kept
