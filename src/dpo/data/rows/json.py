"""Rows out of JSON text, one at a time: no key twice in an object, no array read as a whole."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NoReturn

from dpo.data.refusal import Reason, Refusal
from dpo.data.rows.open_file import LONGEST_ROW, TOO_LONG
from dpo.errors import DataError

CHUNK = 1 << 20
_SPACE = re.compile(r"[ \t\r\n]*")


class TwiceInObject(ValueError):
    """A key stands twice in one object: json would keep the last value without a word."""


def _object(items: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(items)
    if len(found) < len(items):
        keys = [key for key, _ in items]
        raise TwiceInObject(f"key {next(key for key in keys if keys.count(key) > 1)!r:.60} stands there twice")
    return found


_DECODER = json.JSONDecoder(object_pairs_hook=_object)


def parse_json(line: bytes) -> Any:
    """What one line of JSON says, or why it cannot be read."""
    try:
        return _DECODER.decode(line.decode())
    except UnicodeDecodeError as error:
        return Refusal(Reason.invalid_utf8, "", f"byte 0x{error.object[error.start]:02x} at {error.start}")
    except (ValueError, RecursionError) as error:
        return Refusal(Reason.unparsable, "", f"{error}" if str(error) else type(error).__name__)


def array_rows(file: IO[bytes], path: Path) -> Iterator[Any]:
    """The elements of one array, read as they come; `file` begins with its bracket, behind white space at most.

    Bytes that are not UTF-8 become lone surrogates, which the field that holds them is refused for. Raises DataError
    where the text is no JSON.
    """
    decode = codecs.getincrementaldecoder("utf-8-sig")(errors="surrogateescape").decode
    scan = _Scan(file, decode, path)
    scan.take("[")
    if scan.next() == "]":
        scan.take("]")
    else:
        while True:
            yield scan.element()
            if scan.next() != ",":
                scan.take("]")
                break
            scan.take(",")
    if scan.next():
        scan.fail("something follows the array")


class _Scan:
    """Text read as far as the element in hand needs."""

    def __init__(self, file: IO[bytes], decode: Any, path: Path) -> None:
        self._file, self._decode, self._path = file, decode, path
        self._text, self._at, self._row, self._ended = "", 0, 0, False

    def _more(self, size: int) -> bool:
        if self._ended:
            return False
        content = self._file.read(size)
        self._ended = not content
        self._text, self._at = self._text[self._at :] + self._decode(content, self._ended), 0
        return True

    def next(self) -> str:
        """The next character that is not white space; nothing at the end."""
        while True:
            found = _SPACE.match(self._text, self._at)
            assert found is not None
            self._at = found.end()
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more(CHUNK):
                return ""

    def take(self, character: str) -> None:
        """Go on behind this character, which has to be the next one."""
        if self.next() != character:
            self.fail(f"expected {character} behind it" if self._row else f"expected {character}")
        self._at += 1

    def element(self) -> Any:
        """The value that begins here, or the Refusal of its row."""
        self.next()
        while True:
            found, end, fault = self._decoded()
            # A number may go on behind what has been read.
            if end is not None and (end < len(self._text) or self._ended):
                size, self._at = end - self._at, end
                self._row += 1
                return TOO_LONG if size > LONGEST_ROW else found
            size = len(self._text) - self._at
            if size > LONGEST_ROW:
                self.fail(str(TOO_LONG))
            if not self._more(max(CHUNK, size)):
                self.fail(fault)

    def _decoded(self) -> tuple[Any, int | None, str]:
        """(value, where it ends, ""), or no end and why: perhaps the rest has not been read yet."""
        try:
            return *_DECODER.raw_decode(self._text, self._at), ""
        except TwiceInObject as error:
            twice = Refusal(Reason.unparsable, "", str(error))
        except json.JSONDecodeError as error:
            return None, None, error.msg
        except (ValueError, RecursionError) as error:
            self.fail(str(error) or type(error).__name__)
        try:
            return twice, json.JSONDecoder().raw_decode(self._text, self._at)[1], ""
        except json.JSONDecodeError as error:
            return None, None, error.msg

    def fail(self, why: str) -> NoReturn:
        """Raise DataError: the rest of the file cannot be told apart into rows."""
        raise DataError(f"{self._path}:{self._row}: {Reason.unparsable.value}: {why}"[:300])
