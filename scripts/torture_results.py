"""What a verb left behind, compared token by token with what it leaves when nothing is damaged."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path

from torture_process import Ended

CODES = (2, 3, 4, 9)
"""Exit codes a damaged file may have: what was asked for, data, a checkpoint or cache, refused for safety."""
ABSENT = re.compile(r"[-–—/:%\[\](),.\s]*|no|none|null|unreadable", re.IGNORECASE)
"""Tokens that say that there is nothing."""
TEXT = {".json", ".jsonl", ".html", ".md", ".csv", ".txt", ".yaml", ".jinja"}
CLOCK = re.compile(r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d(:\d\d)?|\d+:\d\d:?\d* left|[\d.,]+ (pairs|tokens)/s")
TIMES = "ledger.json"
"""Counts seconds and whatever was done twice."""
MARKS = ".marks"
SCRIPT = re.compile(rb"<script.*?</script>", re.DOTALL)


@dataclass(frozen=True)
class Products:
    """Exit code, and the tokens of every file that the verb wrote and of its output. None: differs by itself."""

    code: int | None
    tokens: dict[str, list[str | None]]

    def steady(self, other: Products) -> Products:
        """Without what differs between two equal calls."""
        tokens: dict[str, list[str | None]] = {}
        for name in sorted(set(self.tokens) & set(other.tokens)):
            mine, theirs = self.tokens[name], other.tokens[name]
            if len(mine) == len(theirs):
                tokens[name] = [a if a == b else None for a, b in zip(mine, theirs, strict=True)]
        return Products(self.code, tokens)

    def difference(self, wanted: Products) -> str | None:
        """Where a product is not the wanted one."""
        for name, expected in wanted.tokens.items():
            mine = self.tokens.get(name)
            if mine is None:
                return f"{name} is not written"
            if len(mine) != len(expected):
                return f"{name} has {len(mine)} words in place of {len(expected)}"
            for number, (got, right) in enumerate(zip(mine, expected, strict=True)):
                if right is not None and got != right:
                    return f"{name} says {' '.join(map(str, mine[max(0, number - 3) : number + 3]))!r}, not {right!r}"
        return None

    def says_less(self, wanted: Products) -> bool:
        """Whether the products hold nothing that the wanted ones do not: less is shown, but nothing else."""
        for name, mine in self.tokens.items():
            known = set(wanted.tokens.get(name, []))
            if name in wanted.tokens and None not in known:
                if any(word not in known and not ABSENT.fullmatch(str(word)) for word in mine):
                    return False
            elif any(re.search(r"\d", str(word)) and word not in known for word in mine):
                return False
        return True


def products(before: Path, after: Path, ended: Ended) -> Products:
    """What is under `after` and was not, or differently, under `before`."""
    tokens: dict[str, list[str | None]] = {"output": _words(ended.output.replace(str(after), ""))}
    for path in (p for p in after.rglob("*") if p.is_file() and "cache" not in p.relative_to(after).parts):
        name = path.relative_to(after)
        old = before / name
        data = path.read_bytes()
        if name.name == TIMES:
            continue
        if not old.is_file() or old.read_bytes() != data or old.stat().st_mtime_ns != path.stat().st_mtime_ns:
            if path.suffix == MARKS:
                tokens[str(name)] = _latest(data)
            elif path.suffix in TEXT:
                text = SCRIPT.sub(b"", data).decode(errors="replace").replace(str(after), "")
                tokens[str(name)] = _words(text)
            else:
                tokens[str(name)] = [hashlib.sha256(data).hexdigest()]
    return Products(ended.code, tokens)


def _words(text: str) -> list[str | None]:
    return [*re.findall(r"[^\s<>\"{},]+", CLOCK.sub("", text))]


def _latest(marks: bytes) -> list[str | None]:
    """What was before the latest change depends on how often somebody began again: what is after it must be the same.
    Damaged marks are what they are."""
    try:
        return _words(json.dumps(json.loads(marks)["after"]))
    except (ValueError, LookupError, TypeError):
        return [hashlib.sha256(marks).hexdigest()]


@dataclass(frozen=True)
class Told:
    """The lines of an output that an undisturbed call does not print."""

    lines: tuple[str, ...]

    @classmethod
    def of(cls, ended: Ended, wanted: Products, cwd: Path) -> Told:
        """The lines of `ended`, without the working folder."""
        usual = set(wanted.tokens.get("output", []))
        lines = [line.replace(str(cwd), "") for line in ended.output.splitlines()]
        return cls(tuple(line for line in lines if not usual.issuperset(_words(line))))

    def any(self, *names: str) -> bool:
        """Whether one of them has one of `names`."""
        return any(name in line for line in self.lines for name in names)


def wrong_result(ended: Ended, got: Products, wanted: Products, told: bool, refused: bool) -> str | None:
    """None when the damage had no effect, or only left things out, or was named with a right exit code.

    `told`: it was named to one who goes on; `refused`: to one who may not.
    """
    if fault := ended.fault():
        return fault
    difference = got.difference(wanted)
    if ended.code == 0:
        if told or difference is None or got.says_less(wanted):
            return None
        return f"exit 0 without a word of it: {difference}"
    if ended.code == wanted.code and difference is None:
        return None
    if ended.code not in CODES:
        return f"exit {ended.code}, not one of {CODES}: {ended.output[-200:]!r}"
    return None if refused else f"exit {ended.code} does not name it: {ended.output[-300:]!r}"
