"""Pairs on disk, one JSON object a line: read back one at a time, so that a full dataset never fills the memory."""

from __future__ import annotations

import json
import os
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dpo.data.indexed import Indexed
from dpo.data.pair import Answer, Message, Pair
from dpo.data.sources.messages import message_dict, messages

_ENCODE = json.JSONEncoder(ensure_ascii=False, default=str, check_circular=False).encode


def to_line(pair: Pair) -> bytes:
    """A Pair as one line of JSON, as people read it and `from_line` takes it."""
    data = {
        "id": pair.id,
        "prompt": [message_dict(turn) for turn in pair.prompt],
        "chosen": plain_answer(pair.chosen),
        "rejected": plain_answer(pair.rejected),
        "strength": pair.strength,
        "group": pair.group,
        "meta": pair.meta,
    }
    if pair.tools:
        data["tools"] = pair.tools
    return _ENCODE(data).encode("utf-8", "backslashreplace") + b"\n"


def from_line(line: bytes) -> Pair:
    """The Pair of one line."""
    data = json.loads(line)
    prompt = tuple(map(_message, data["prompt"]))
    sides = _answer(data["chosen"]), _answer(data["rejected"])
    own = (data["group"], data["strength"], data["meta"])
    return Pair(data["id"], prompt, *sides, *own, tools=data.get("tools", ""))


def plain_answer(answer: Answer) -> str | list[dict[str, Any]]:
    """An answer as rows hold it."""
    return answer if isinstance(answer, str) else [message_dict(turn) for turn in answer]


def _answer(found: Any) -> Answer:
    return found if isinstance(found, str) else tuple(map(_message, found))


def _message(turn: dict[str, Any]) -> Message:
    if len(turn) == 2 and isinstance(turn["content"], str):
        return Message(turn["role"], turn["content"])
    return messages([turn], "")[0]


class PairWriter:
    """Appends pairs to a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.starts = array("q")
        self._file = path.open("wb")
        self._end = 0

    def write(self, pair: Pair) -> None:
        self.write_line(to_line(pair))

    def write_line(self, line: bytes) -> None:
        """Append a line that `to_line` made."""
        self.starts.append(self._end)
        self._end += self._file.write(line)

    def close(self, sync: bool = False) -> None:
        self._file.flush()
        if sync:
            os.fsync(self._file.fileno())
        self._file.close()


class PairFile(Indexed[Pair]):
    """The pairs of a file at the given line starts (bytes), in that order. Safe to read from several threads."""

    def __init__(self, path: Path, starts: array[int] | None = None) -> None:
        self.path = path
        self.starts = _line_starts(path) if starts is None else starts
        self._descriptor = os.open(path, os.O_RDONLY)

    def __len__(self) -> int:
        return len(self.starts)

    def at(self, index: int) -> Pair:
        return from_line(self.line(index))

    def __iter__(self) -> Iterator[Pair]:
        return (from_line(line) for line in self.lines())

    def line(self, index: int) -> bytes:
        """The bytes of one pair's line."""
        parts: list[bytes] = []
        start, size = self.starts[index], 1 << 13
        while True:
            part = os.pread(self._descriptor, size, start)
            end = part.find(b"\n")
            if end >= 0 or not part:
                return b"".join([*parts, part[: end + 1] if end >= 0 else part])
            parts.append(part)
            start, size = start + len(part), size * 4

    def lines(self) -> Iterator[bytes]:
        """All lines, in order."""
        return (self.line(index) for index in range(len(self.starts)))

    def __reduce__(self) -> tuple[Any, ...]:
        return PairFile, (self.path, self.starts)

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)


def _line_starts(path: Path) -> array[int]:
    starts, end = array("q"), 0
    with path.open("rb") as file:
        for line in file:
            starts.append(end)
            end += len(line)
    return starts
