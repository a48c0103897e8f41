"""One place cleans all that is printed: lines, errors, tracebacks, tables and bars."""

from __future__ import annotations

import importlib
import io
import sys
from collections.abc import Callable

import pytest
from rich.progress import Progress
from rich.table import Table

from dpo import streams
from dpo.records.terminal import console

ESC = "\x1b]0;owned\x07\x1b[2J\x9b31m"
HOSTILE = f"{ESC}\u202egnp.exe\u2066\x08\x00"
FORBIDDEN = "\x1b\x07\x08\x00\x9b\u202e\u2066"


def tame(text: str) -> bool:
    return not set(text) & set(FORBIDDEN)


@pytest.fixture
def printed(monkeypatch, capfd):
    """Call a body in a process that began as verbs do: what it wrote to (stdout, stderr)."""

    def of(body: Callable[[], object]) -> tuple[str, str]:
        # Here and not before: pytest sets the streams anew between a fixture and its test.
        for name in ("stdout", "stderr", "__stdout__", "__stderr__"):
            monkeypatch.setattr(sys, name, getattr(sys, name))
        streams.forgive()
        body()
        sys.stdout.flush()
        sys.stderr.flush()
        return capfd.readouterr()

    return of


@pytest.mark.parametrize(
    ("verb", "words"),
    [
        ("train", ["model=custom", f"model.path=no{HOSTILE}"]),
        ("train", ["dataset=local", f"dataset.path='{HOSTILE}'"]),
        ("train", [f"dpo.{HOSTILE}=1"]),
        ("train", [f"--{HOSTILE}"]),
        ("train", [f"name='{HOSTILE}'"]),
        ("evaluate", [f"no{HOSTILE}"]),
        ("status", [f"root='{HOSTILE}'"]),
        ("audit", [HOSTILE]),
        ("cache", [HOSTILE]),
        ("doctor", [HOSTILE]),
        ("init", [HOSTILE]),
        ("cli", [HOSTILE]),
    ],
)
def test_no_error_carries_an_escape(verb, words, monkeypatch, printed, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [f"dpo.{verb}", *[word.replace("\x00", "") for word in words]])

    def body() -> None:
        with pytest.raises(SystemExit):
            importlib.import_module(f"dpo.{verb}").main()

    out, err = printed(body)
    assert err
    assert tame(out + err)


def test_lines_are_cleaned(printed):
    def body() -> None:
        print(f"path {HOSTILE}")
        print(f"path {HOSTILE}", file=sys.stderr)
        sys.stdout.writelines([HOSTILE])
        print("before\rafter\n\rbar", end="")
        sys.stdout.write("\r50%")

    out, err = printed(body)
    assert tame(out + err)
    assert "gnp.exe" in out
    assert "before\nafter\n\nbar\r50%" in out


def test_a_console_keeps_its_own_codes_and_cleans_what_it_shows(printed):
    def body() -> None:
        shown = console(force_terminal=True, width=80, color_system="standard")
        table = Table()
        table.add_column(f"[bold]{HOSTILE}")
        table.add_row(HOSTILE)
        print("first")
        shown.print(table)
        shown.print(f"[red]a{HOSTILE}[/red]")
        with Progress(console=shown) as bars:
            bars.add_task(HOSTILE)
            print(f"below the bar {HOSTILE}")
        print("last")

    text = printed(body)[0]
    assert text.startswith("first\n")
    assert text.endswith("last\n")
    assert "\x1b[31ma" in text  # rich's own red
    assert "\x1b[?25l" in text  # and its bars' codes
    assert "below the bar" in text
    assert not any(part in text for part in ("\x1b]0;", "\x1b[2J", "\x9b", "\x07", "\u202e", "\u2066", "\x08"))


def test_a_console_of_another_stream_is_cleaned_too():
    file = io.StringIO()
    console(file=file).print(HOSTILE)
    assert tame(file.getvalue())
