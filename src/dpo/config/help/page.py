"""`--help` of a verb: its own groups and keys, each with what its YAML says of it. `--help all` leaves nothing out."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dpo.config.folder import conf_folder, options
from dpo.config.gaps import load_values

WIDTH = 100
KEY = re.compile(r"( *)([A-Za-z_]\w*):(?: |$)")
# Groups of a command line that are no part of what is composed into.
OWN = ("hydra",)


def help_page(config_name: str, whole: bool) -> str:
    """The text. Short: every key with the first sentence of its comment; `whole`: all of the comments, all options."""
    path = conf_folder() / f"{config_name}.yaml"
    values = load_values(path)
    shown = values.get("hydra", {}).get("help", {})
    out = [f"{shown.get('app_name', '')} [key=value ...]", *_wrapped(str(shown.get("header", "")), "")]
    entries = [entry for entry in values.get("defaults", []) if isinstance(entry, dict)]
    out += _section("", path, {k: v for k, v in values.items() if k not in ("defaults", *OWN)}, whole)
    for group, chosen in [pair for entry in entries for pair in entry.items() if not pair[0].startswith("override")]:
        names = options(group)
        given = ", ".join(chosen) if isinstance(chosen, list) else chosen
        out += ["", *_wrapped(f"{', '.join(names)}{f' (without it {given})' if given else ''}", f"{group}: ")]
        for option in _shown(group, chosen, names, whole):
            out += [f"  {option}:"] if whole and option != chosen else []
            out += _group(group, option, whole)
    footer = str(shown.get("footer", "")).rstrip()
    return "\n".join([*out, "", footer, "" if whole else "--help all: whole comments, and the keys of every option."])


def _shown(group: str, chosen: Any, names: list[str], whole: bool) -> list[str]:
    if whole:
        return names
    return chosen if isinstance(chosen, list) else [chosen] if chosen in names else []


def _group(group: str, option: str, whole: bool) -> list[str]:
    """The keys of one option, with those it takes from the files its defaults name."""
    comments: dict[str, str] = {}
    values: dict[str, Any] = {}
    for path in _files(conf_folder() / group, option):
        comments |= _comments(path)
        values |= {key: value for key, value in load_values(path).items() if key != "defaults"}
    prefix = "" if _is_global(conf_folder() / group / f"{option}.yaml") else f"{group}."
    return _lines(prefix, values, comments, whole)


def _files(folder: Path, option: str) -> Iterator[Path]:
    """The YAML of an option, after those its defaults take in; schemas have none."""
    path = folder / f"{option}.yaml"
    if not path.is_file():
        return
    for entry in load_values(path).get("defaults", []):
        if isinstance(entry, str) and entry != "_self_":
            yield from _files(folder, entry)
    yield path


def _is_global(path: Path) -> bool:
    return path.is_file() and path.read_text(encoding="utf-8").startswith("# @package _global_")


def _section(prefix: str, path: Path, values: dict[str, Any], whole: bool) -> list[str]:
    return ["", *_lines(prefix, values, _comments(path), whole)] if values else []


def _lines(prefix: str, values: dict[str, Any], comments: dict[str, str], whole: bool, inner: str = "") -> list[str]:
    out: list[str] = []
    plain: list[str] = []
    for key, value in values.items():
        comment = _short(comments.get(f"{inner}{key}", ""), whole)
        if isinstance(value, dict) and value:
            out += _wrapped(comment, f"  {prefix}{key}: ") if comment else []
            out += _lines(f"{prefix}{key}.", value, comments, whole, f"{inner}{key}.")
        elif comment:
            out += _wrapped(comment, f"  {prefix}{key}={_word(value)}", 36)
        else:
            plain.append(f"{prefix}{key}={_word(value)}")
    # What needs no explanation shares lines.
    return out + _wrapped(" ".join(plain), "  ")


def _short(comment: str, whole: bool) -> str:
    """The first sentence."""
    return comment if whole else re.split(r"(?<=[.;]) ", comment, maxsplit=1)[0].rstrip(".;")


def _wrapped(text: str, head: str, column: int | None = None) -> list[str]:
    """Lines of `head` and then the text, from `column` on where one is given."""
    if column is None:
        return textwrap.wrap(text, WIDTH, initial_indent=head, subsequent_indent=" " * min(4, len(head)),
                             break_long_words=False, break_on_hyphens=False)  # fmt: skip
    start = f"{head:<{column - 1}} "
    if not text:
        return [start.rstrip()]
    return textwrap.wrap(text, WIDTH, initial_indent=start, subsequent_indent=" " * column,
                         break_long_words=False, break_on_hyphens=False)  # fmt: skip


def _word(value: Any) -> str:
    if value == "???":
        return "(needs a value)"
    if isinstance(value, list):
        return f"[{','.join(map(_word, value))}]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _comments(path: Path) -> dict[str, str]:
    """{dotted key: the comment above it} of a YAML of block mappings."""
    found: dict[str, str] = {}
    above: list[str] = []
    parents: list[tuple[int, str]] = []
    first = True
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.lstrip().startswith("#"):
            above.append(line.strip(" #"))
        elif key := KEY.match(line):
            indent = len(key[1])
            parents = [(depth, name) for depth, name in parents if depth < indent] + [(indent, key[2])]
            # A file begins with a sentence about itself.
            comment = " ".join(above).partition(". ")[2] if first else " ".join(above)
            if comment:
                found[".".join(name for _, name in parents)] = comment
            above, first = [], False
        else:
            above = []
    return found
