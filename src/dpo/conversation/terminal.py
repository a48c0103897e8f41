"""The terminal side of a chat: a prompt, commands, two columns that grow; plain labelled lines without a terminal."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from rich.columns import Columns
from rich.console import Console
from rich.live import Live
from rich.panel import Panel
from rich.text import Text

from dpo.config.nearest import nearest
from dpo.conversation.sides import ORDER, Answer, Conversation
from dpo.errors import ConfigError

HELP = """/system TEXT   begin anew with this system message; without text: with none
/reset         begin anew
/save FILE     write the conversation as JSON
/load FILE     go on with a saved conversation
/help          this
/quit          leave (Ctrl-D too); Ctrl-C stops an answer"""
COMMANDS = ("/system", "/reset", "/save", "/load", "/help", "/quit")


def talk(conversation: Conversation, console: Console, source: Any = None) -> None:
    """Read lines from `source` (default: standard input) until /quit or its end, and answer each."""
    source = source or sys.stdin
    # Commands work piped as well; only the drawing differs.
    terminal = console.is_terminal and source.isatty()
    if terminal:
        console.print(Text("baseline and policy answer side by side; /help lists the commands", style="dim"))
    while True:
        try:
            line = console.input("[bold]you:[/bold] ") if terminal else source.readline()
        except EOFError:
            return
        except KeyboardInterrupt:
            if not terminal:
                raise
            console.print(Text("\n/quit or Ctrl-D leaves", style="dim"))
            continue
        if not terminal and not line:
            return
        line = line.strip()
        if line == "/quit":
            return
        try:
            if line.startswith("/"):
                console.print(Text(_command(conversation, line)))
            elif line:
                _answer(conversation, console, line, terminal)
        except ConfigError as error:
            console.print(Text(str(error)), soft_wrap=True)
        except KeyboardInterrupt:
            # Between two tokens it ends an answer; anywhere else it must not end the session.
            if not terminal:
                raise


def _command(conversation: Conversation, line: str) -> str:
    name, _, rest = line.partition(" ")
    rest = rest.strip()
    if name == "/system":
        conversation.reset(rest or None)
        return f"begun anew, system message: {rest or 'none'}"
    if name == "/reset":
        conversation.reset(conversation.system)
        return "begun anew"
    if name in ("/save", "/load"):
        if not rest:
            raise ConfigError(f"{name}: needs a file, as in {name} talk.json")
        path = Path(rest).expanduser()
        if name == "/save":
            conversation.save(path)
            return f"saved to {path}"
        return f"{conversation.load(path)} questions and answers from {path}"
    if name == "/help":
        return HELP
    raise ConfigError(f"{name}: unknown command{nearest(name, list(COMMANDS))}; /help lists them")


def _answer(conversation: Conversation, console: Console, text: str, terminal: bool) -> None:
    if not terminal:
        answers = conversation.ask(text, lambda answers: None)
        console.print(Text(f"you: {text}"), soft_wrap=True)
        for side in ORDER:
            console.print(Text(f"{side}: {answers[side].text.strip()}{_end(answers[side])}"), soft_wrap=True)
        return
    # What has scrolled off a terminal cannot be drawn over: while it grows the end is shown, afterwards all of it once.
    with Live(console=console, refresh_per_second=12, transient=True) as live:
        answers = conversation.ask(text, lambda answers: live.update(_columns(answers, console, console.height - 3)))
    console.print(_columns(answers, console))


def _columns(answers: dict[str, Answer], console: Console, height: int | None = None) -> Columns:
    """Both answers side by side, each cut to its last `height` lines."""
    width = console.width // 2 - 1
    panels = []
    for side in ORDER:
        # Two columns for the frame and two beside it.
        lines = Text(answers[side].text.strip() + _end(answers[side])).wrap(console, max(1, width - 4))
        shown = lines if height is None else lines[-max(1, height) :]
        panels.append(Panel(Text("\n").join(shown), title=side, title_align="left", width=width))
    return Columns(panels, padding=(0, 1))


def _end(answer: Answer) -> str:
    return f" [{answer.how}]" if answer.how in ("cut", "stopped") else ""
