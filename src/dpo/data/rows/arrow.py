"""Rows out of Arrow files, which `datasets` writes with save_to_disk, and out of any batches of such columns."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from dpo.data.rows.files import BATCH_ROWS, check_columns_differ
from dpo.data.rows.open_file import LONGEST_ROW, TOO_LONG
from dpo.errors import DataError

POINTER = 8


def arrow_rows(file: IO[bytes], path: Path) -> Iterator[tuple[int, Any]]:
    """(number, row) of an Arrow file, of either of its two kinds."""
    import pyarrow

    try:
        kind = file.read(6)
        file.seek(0)
        if kind == b"ARROW1":
            whole = pyarrow.ipc.open_file(file)
            batches, schema = (whole.get_batch(index) for index in range(whole.num_record_batches)), whole.schema
        else:
            batches = pyarrow.ipc.open_stream(file)
            schema = batches.schema
        check_columns_differ(schema.names, path)
        check_types(schema, path)
        yield from enumerate(row for batch in batches for part in _parts(batch) for row in batch_rows(part))
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a readable Arrow file ({first_line(error)})") from None


def first_line(error: BaseException) -> str:
    """What an error of pyarrow says, in a line."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _parts(batch: Any) -> Iterator[Any]:
    for start in range(0, batch.num_rows, BATCH_ROWS):
        yield batch.slice(start, BATCH_ROWS)


def _without_padding(found: Any, inside: bool = False) -> Any:
    """Without the nulls that a table holds, in tools and calls, for each field that another row's have."""
    if isinstance(found, list):
        return [_without_padding(one, inside) for one in found]
    if not isinstance(found, dict):
        return found
    return {
        key: _without_padding(value, inside or key in ("tools", "functions", "tool_calls", "function_call"))
        for key, value in found.items()
        if value is not None or not inside
    }


def check_types(schema: Any, path: Path) -> None:
    """Raise DataError for a column whose rows may share their bytes in ways that `_unpacked` does not count."""
    from pyarrow import types

    def foreign(kind: Any) -> bool:
        if hasattr(kind, "storage_type"):
            return foreign(kind.storage_type)
        if types.is_dictionary(kind):
            return foreign(kind.value_type)
        if types.is_nested(kind):
            listed = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
            whole = listed or types.is_struct(kind) or types.is_map(kind)
            return not whole or any(foreign(kind.field(i).type) for i in range(kind.num_fields))
        return types.is_run_end_encoded(kind) or types.is_string_view(kind) or types.is_binary_view(kind)

    for field in schema:
        if foreign(field.type):
            raise DataError(f"{path}: column {field.name!r:.60} is of type {field.type!s:.60}, which is not read here")


def batch_rows(batch: Any) -> Iterator[Any]:
    """The rows of a batch; one that is longer than a row may be comes as a Refusal."""
    padded = not {"tools", "functions"}.isdisjoint(batch.schema.names) or "tool_calls" in str(batch.schema)
    return map(_without_padding, _rows(batch)) if padded else _rows(batch)


def _rows(batch: Any) -> Iterator[Any]:
    if sum(map(_unpacked, batch.columns)) <= LONGEST_ROW and (whole := _pylist(batch)) is not None:
        yield from whole
        return
    for index in range(batch.num_rows):
        if sum(_unpacked(column.slice(index, 1)) for column in batch.columns) > LONGEST_ROW:
            yield TOO_LONG
        else:
            yield {name: _cell(batch.column(name)[index]) for name in batch.schema.names}


def _unpacked(column: Any) -> int:
    """Bytes of a column's values, each written out: a text that stands in a dictionary counts wherever it is meant,
    and every element of a list as the pointer it becomes."""
    import pyarrow
    import pyarrow.compute

    if isinstance(column, pyarrow.ExtensionArray):
        return _unpacked(column.storage)
    kind = column.type
    if isinstance(column, pyarrow.DictionaryArray):
        is_a = pyarrow.types
        texts = (is_a.is_string, is_a.is_large_string, is_a.is_binary, is_a.is_large_binary)
        if not any(is_text(kind.value_type) for is_text in texts):
            return len(column) * max(POINTER, _unpacked(column.dictionary))
        lengths = pyarrow.compute.binary_length(column.dictionary).cast("int64").take(column.indices)
        return POINTER * len(column) + (pyarrow.compute.sum(lengths).as_py() or 0)
    if pyarrow.types.is_struct(kind):
        return POINTER * len(column) + sum(map(_unpacked, column.flatten()))
    if pyarrow.types.is_map(kind):
        # Of a slice, `offsets` are its own, `keys` and `items` those of the whole.
        start, end = column.offsets[0].as_py(), column.offsets[len(column)].as_py()
        sides = (values.slice(start, end - start) for values in (column.keys, column.items))
        return POINTER * len(column) + sum(map(_unpacked, sides))
    if pyarrow.types.is_nested(kind):
        return POINTER * len(column) + _unpacked(column.flatten())
    return max(POINTER * len(column), column.nbytes)


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
