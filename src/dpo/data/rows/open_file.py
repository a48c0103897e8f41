"""Opening files of rows, packed or not, and reading their lines, so that no file and no line can fill the memory."""

from __future__ import annotations

import gzip
import io
import stat
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, AnyStr, Generic

from dpo.data.refusal import Reason, Refusal
from dpo.errors import DataError

# Bytes (characters of text) of one row. The longest prompts of today's models are some megabytes.
LONGEST_ROW = 16 << 20
# Bytes of a packed file of a format that has to be unpacked as a whole.
LONGEST_WHOLE = 1 << 30
PACKED = (".gz", ".zst")
TOO_LONG = Refusal(Reason.too_long, "", f"more than {LONGEST_ROW >> 20} MB")


def packing(path: Path) -> str:
    """`.gz`, `.zst` or nothing, by the file's name."""
    suffix = path.suffix.lower()
    return suffix if suffix in PACKED else ""


@contextmanager
def open_file(path: Path) -> Iterator[IO[bytes]]:
    """The bytes of a file, unpacked as they are read; raises DataError where it cannot be read or is no file.

    A pipe or a device would wait for ever, and what it gave could not be read a second time.
    """
    try:
        check_file(path)
        with _opened(path) as file:
            yield file
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path}: damaged gzip archive ({error})") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or str(error).splitlines()[0]})") from None


def check_file(path: Path) -> None:
    """Raise DataError unless `path` is a file that can be opened more than once."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
    if stat.S_ISDIR(mode):
        raise DataError(f"{path}: a folder, not a file")
    if not stat.S_ISREG(mode):
        raise DataError(f"{path}: a pipe or a device, not a file; write what it gives into a file first")


def _opened(path: Path) -> IO[bytes]:
    kind = packing(path)
    if kind == ".gz":
        return io.BufferedReader(gzip.open(path, "rb"))  # type: ignore[arg-type]
    if kind == ".zst":
        import pyarrow

        return io.BufferedReader(pyarrow.input_stream(path, compression="zstd"))  # type: ignore[return-value]
    return path.open("rb")


def whole(file: IO[bytes], path: Path) -> IO[Any]:
    """A file one can jump about in; a packed one is unpacked into memory, and refused where that is too much."""
    if not packing(path):
        return file
    content = file.read(LONGEST_WHOLE + 1)
    if len(content) > LONGEST_WHOLE:
        raise DataError(f"{path}: more than {LONGEST_WHOLE >> 30} GB when unpacked; unpack it first")
    return io.BytesIO(content)


class Lines(Generic[AnyStr]):
    """The lines of a file, each with its end; a line longer than LONGEST_ROW comes as a Refusal and is passed over."""

    def __init__(self, readline: Callable[[int], AnyStr], end: AnyStr) -> None:
        self._readline: Callable[[int], AnyStr] = readline
        self._end: AnyStr = end

    def __iter__(self) -> Iterator[AnyStr | Refusal]:
        readline, end = self._readline, self._end
        while line := readline(LONGEST_ROW + 1):
            if len(line) <= LONGEST_ROW or line.endswith(end):
                yield line
                continue
            while line and not line.endswith(end):
                line = readline(1 << 20)
            yield TOO_LONG
