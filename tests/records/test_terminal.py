"""One place cleans all that is printed: lines, errors, tracebacks, tables and bars."""

from __future__ import annotations

import importlib
import io
import os
import pty
import subprocess
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


SHOW = """
import sys
from dpo.streams import forgive
forgive()
from dpo.pages.tables import to_table
from dpo.records.terminal import terminal
print("results")
print("a note", file=sys.stderr)
terminal().print(to_table(["run", "state"], [["word " * 40, "complete"]], styles=["green"]))
print("error: last", file=sys.stderr)
"""


def _environment(**more: str) -> dict[str, str]:
    known = ("COLUMNS", "NO_COLOR", "FORCE_COLOR", "TERM", "PYTHONUNBUFFERED")
    return {name: value for name, value in os.environ.items() if name not in known} | more


@pytest.mark.parametrize(
    ("environment", "colours", "escapes"),
    [
        ({"TERM": "xterm-256color"}, True, True),
        ({"TERM": "xterm-256color", "NO_COLOR": "1"}, False, True),
        ({"TERM": "dumb"}, False, False),
    ],
)
def test_a_terminal_gets_the_colours_it_asks_for(environment, colours, escapes):
    """On a terminal of 80 columns, which a real one says; nothing is wider."""
    master, slave = pty.openpty()
    os.set_blocking(master, False)
    import fcntl
    import struct
    import termios

    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    subprocess.run(
        [sys.executable, "-c", SHOW],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env=_environment(**environment),
        check=True,
    )
    shown = os.read(master, 100_000).decode()
    assert ("\x1b[32m" in shown) is colours
    assert ("\x1b[" in shown) is escapes
    assert max(len(line) for line in shown.replace("\x1b[", "").splitlines()) <= 80 + 20 * escapes


@pytest.mark.parametrize(("environment", "width"), [({}, 100), ({"COLUMNS": "80"}, 80), ({"COLUMNS": "120"}, 120)])
def test_a_pipe_is_as_wide_as_columns_says_and_has_no_escapes(environment, width):
    done = subprocess.run(
        [sys.executable, "-c", SHOW], capture_output=True, text=True, env=_environment(**environment), check=True
    )
    assert "\x1b" not in done.stdout
    assert width - 10 < max(map(len, done.stdout.splitlines())) <= width


def test_a_line_in_a_pipe_is_one_line():
    program = "from dpo.records.terminal import terminal; terminal().print('pairs in ' + 'folder/' * 30 + 'a b')"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=_environment(), check=True
    )
    assert done.stdout == "pairs in " + "folder/" * 30 + "a b\n"


@pytest.mark.parametrize("unbuffered", [{}, {"PYTHONUNBUFFERED": "1"}])
def test_a_note_in_one_pipe_with_the_results_does_not_come_behind_them(unbuffered):
    done = subprocess.run(
        [sys.executable, "-c", SHOW], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env=_environment(**unbuffered), check=True,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    assert lines.index("a note") < next(i for i, line in enumerate(lines) if "state" in line)
    if unbuffered:
        assert (lines[0], lines[-1]) == ("results", "error: last")
