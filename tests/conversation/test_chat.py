"""`dpo.chat` with a run trained for real: streams, commands, Ctrl-C, hostile output, a pipe and a real terminal."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from dpo.config.export import Chat
from dpo.conversation.sides import Conversation
from dpo.conversation.terminal import talk
from dpo.errors import ConfigError
from dpo.generation.sampling import Sampling, sample, stream


@pytest.fixture(scope="module")
def sides(tiny_run: Path) -> Any:
    from dpo.evaluation.sides import load_sides

    return load_sides(tiny_run)


@pytest.fixture
def conversation(sides: Any) -> Conversation:
    return Conversation(sides, Chat("run", None, 0.9, 20, 12, 1), "run")


def said(conversation: Conversation, *lines: str) -> str:
    """What is printed when these lines are piped in."""
    console = Console(file=io.StringIO(), width=100)
    talk(conversation, console, io.StringIO("".join(f"{line}\n" for line in lines)))
    return console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_a_stream_draws_what_an_evaluation_draws(sides: Any, temperature: float) -> None:
    sampling = Sampling(temperature, 20, 12, 3)
    prompts = [[1, 3, 8, 9, 2, 1, 4], [1, 3, 10, 2, 1, 4]]
    for side in ("policy", "baseline"):
        with sides.use(side) as model:
            drawn = sample(model, prompts, sampling, {2}, 2, 1, row_seeds=["a", "b"])
            whole = {i: a.ids for indices, answers in drawn for i, a in zip(indices, answers, strict=True)}
            assert [list(stream(model, p, sampling, {2}, s)) for p, s in zip(prompts, "ab", strict=True)] == [
                whole[0],
                whole[1],
            ]


def test_both_sides_answer_and_remember_their_own_turns(conversation: Conversation, sides: Any) -> None:
    grown: list[tuple[int, int]] = []
    answers = conversation.ask("the cat", lambda a: grown.append((len(a["policy"].ids), len(a["baseline"].ids))))
    assert len(grown) > 1, "shown as it grows"
    assert all(abs(p - b) <= 1 for p, b in grown[:2]), "a token each in turn"
    for side, answer in answers.items():
        assert answer.how in ("ended", "cut")
        assert conversation.turns[side][-1] == {"role": "assistant", "content": answer.text}
    again = conversation.prompt("policy", "red dog")
    text = sides.tokenizer.decode(again)
    assert answers["policy"].text.split()[:3] == text.split("assistant")[1].split()[:3]


def test_the_sides_are_those_of_the_run(conversation: Conversation, sides: Any) -> None:
    """Interleaved token by token, each side says what it says alone."""
    answers = conversation.ask("the cat sat", lambda a: None)
    fresh = Conversation(sides, conversation.config, "run")
    for side in ("policy", "baseline"):
        with sides.use(side) as model:
            alone = list(stream(model, fresh.prompt(side, "the cat sat"), fresh.sampling, sides.stop_ids, "chat:0"))
        assert answers[side].ids == alone
    assert answers["policy"].ids != answers["baseline"].ids


def test_commands(conversation: Conversation, tmp_path: Path) -> None:
    file = tmp_path / "talk.json"
    out = said(
        conversation, "/help", "/system red dog", "the cat", f"/save {file}", f"/save {file}", "/rest", "", "/quit", "x"
    )
    assert "/reset" in out
    assert "system message: red dog" in out
    assert "baseline: " in out
    assert "policy: " in out
    assert "there already" in out
    assert "/reset" in out.split("unknown command")[1]
    assert "you: x" not in out, "nothing is answered after /quit"
    kept = json.loads(file.read_text())
    assert kept["system"] == "red dog"
    assert [turn["role"] for turn in kept["policy"]] == ["user", "assistant"]
    said(conversation, "/reset")
    assert conversation.turns == {"policy": [], "baseline": []}
    assert conversation.system == "red dog"
    said(conversation, "/system")
    assert conversation.system is None


def test_a_saved_conversation_goes_on(conversation: Conversation, sides: Any, tmp_path: Path) -> None:
    file = tmp_path / "talk.json"
    said(conversation, "/system red dog", "the cat", f"/save {file}", "slow hill")
    fresh = Conversation(sides, conversation.config, "run")
    assert "1 questions and answers" in said(fresh, f"/load {file}")
    assert fresh.system == "red dog"
    said(fresh, "slow hill")
    assert fresh.turns == conversation.turns, "as if it had never ended"
    file.write_text('{"policy": [{"role": "user", "content": "x"}], "baseline": []}')
    for broken in (file, tmp_path / "nowhere.json"):
        assert "not a conversation" in said(fresh, f"/load {broken}")
    assert fresh.turns == conversation.turns, "a file that is none changes nothing"


def test_ctrl_c_stops_the_answer_and_not_the_session(conversation: Conversation) -> None:
    def stop(answers: dict[str, Any]) -> None:
        if len(answers["policy"].ids) == 3:
            raise KeyboardInterrupt

    conversation.sampling = Sampling(0.0, 20, 50, 1)
    conversation.sides.stop_ids  # noqa: B018 - read once before it is replaced below
    answers = conversation.ask("the cat", stop)
    assert "stopped" in {answer.how for answer in answers.values()}
    assert len(answers["policy"].ids) <= 3
    assert conversation.ask("red dog", lambda a: None)["policy"].how in ("ended", "cut")


def test_terminal_escapes_of_the_model_do_nothing(conversation: Conversation, monkeypatch: pytest.MonkeyPatch) -> None:
    hostile = "\x1b]0;owned\x07\x1b[2Jhello\x9b31m \u202eevil [bold]x[/bold]"
    monkeypatch.setattr(conversation.sides.tokenizer, "decode", lambda ids, **kwargs: hostile)
    out = said(conversation, "the cat")
    assert "hello" in out
    assert "[bold]x[/bold]" in out
    assert not {"\x1b", "\x9b", "\u202e", "\x07"} & set(out)


def test_a_conversation_longer_than_the_model_is_refused(
    conversation: Conversation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conversation.sides.policy.config, "max_position_embeddings", 16)
    assert "/reset begins anew" in said(conversation, "the cat sat on the mat and the dog ran")
    with pytest.raises(ConfigError, match="16 tokens"):
        conversation.prompt("policy", "the cat sat on the mat and the dog ran")


def test_the_verb_reads_a_pipe(
    tiny_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from dpo import chat

    monkeypatch.setattr(sys, "argv", ["dpo.chat", str(tiny_run), "max_new_tokens=4"])
    monkeypatch.setattr(sys, "stdin", io.StringIO("the cat\n/quit\n"))
    chat.main()
    out = capsys.readouterr().out
    assert [line.split(":")[0] for line in out.splitlines() if ":" in line] == ["you", "baseline", "policy"]
    assert "\x1b" not in out


@pytest.fixture
def until() -> Callable[..., str]:
    def read(terminal: int, wanted: str, seconds: float = 120) -> str:
        seen, ends = "", time.monotonic() + seconds
        while wanted not in seen:
            # A read alone would wait for a silent program without end.
            ready, _, _ = select.select([terminal], [], [], max(0.0, ends - time.monotonic()))
            if not ready:
                raise TimeoutError(seen)
            seen += os.read(terminal, 65536).decode(errors="replace")
        return seen

    return read


def test_a_real_terminal_shows_two_columns_and_survives_ctrl_c(tiny_run: Path, until: Callable[..., str]) -> None:
    terminal, other = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "dpo.chat", str(tiny_run), "max_new_tokens=6"],
        stdin=other,
        stdout=other,
        stderr=other,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "100"},
        start_new_session=True,
    )
    os.close(other)
    try:
        until(terminal, "you:")
        os.write(terminal, b"the cat\n")
        shown = until(terminal, "you:")
        assert "baseline" in shown
        assert "policy" in shown
        assert any(line.count("─ ") >= 2 or line.count("╭") == 2 for line in shown.splitlines()), "side by side"
        process.send_signal(signal.SIGINT)
        try:
            until(terminal, "leaves", 10)
        except TimeoutError:
            # A signal between Python's last look for one and its wait for a key is heard with the next.
            process.send_signal(signal.SIGINT)
            until(terminal, "leaves")
        os.write(terminal, b"/quit\n")
        assert process.wait(60) == 0
    finally:
        process.kill()
        os.close(terminal)


def test_a_long_answer_on_a_low_terminal_is_left_once_and_whole(
    conversation: Conversation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What grows never exceeds the screen, as only what is on it can be drawn over; then all is printed once."""
    words = [f"word{i:03}" for i in range(60)]
    monkeypatch.setattr(conversation.sides.tokenizer, "decode", lambda ids, **kwargs: " ".join(words[: 5 * len(ids)]))
    console = Console(file=io.StringIO(), force_terminal=True, width=60, height=8)
    source = Typed("the cat\n/quit\n")
    monkeypatch.setattr("sys.stdin", source)
    talk(conversation, console, source)
    out = console.file.getvalue()  # type: ignore[attr-defined]
    redrawn = [len(ups) // len(UP) for ups in re.findall(f"(?:{re.escape(UP)})+", out)]
    assert redrawn, "it grew"
    assert max(redrawn) < console.height
    left = out.rpartition(UP)[2]
    lengths = [len(conversation.turns[side][-1]["content"].split()) for side in ("baseline", "policy")]
    assert max(lengths) > 20, "longer than the terminal is high"
    for number, word in enumerate(words):
        assert left.count(word) == sum(number < length for length in lengths)


UP = "\x1b[1A\x1b[2K"


class Typed(io.StringIO):
    """Lines from what says it is a terminal."""

    def isatty(self) -> bool:
        return True
