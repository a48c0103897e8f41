"""What every part of the torture stands on: a tiny model, its pairs, undisturbed runs, a hub on loopback, canaries."""

from __future__ import annotations

import itertools
import os
import random
import shutil
import string
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import tiny
import torture_preload
from torture_process import LIMIT, Ended, Running, start

Outcome = tuple[bytes, list[dict[str, Any]]]
OPTIONS = ("lora", "qlora")
HELD_OUT = "dataset.test_fraction=0.4"
NAMES = (
    "HF_TOKEN", "WANDB_API_KEY", "OPENAI_API_KEY", "AWS_SECRET_ACCESS_KEY", "GITHUB_TOKEN", "DATABASE_PASSWORD",
    "STRIPE_SECRET", "SLACK_TOKEN", "CANARY", "PRIVATE_NOTE",
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One attack: `check` gets an empty folder and says what went wrong, or None."""

    name: str
    check: Callable[[Path], str | None]


@dataclass(eq=False)
class World:
    """One folder with everything in it. `said` collects what processes printed since `forget`."""

    root: Path
    seed: int
    options: tuple[str, ...] = OPTIONS
    preload: bool = False
    said: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    """What an undisturbed run of an option took."""

    def __post_init__(self) -> None:
        shutil.rmtree(self.root, ignore_errors=True)
        self.root.mkdir(parents=True)
        draw = random.Random(f"canaries{self.seed}")
        letters = string.ascii_letters + string.digits
        self.canaries = {name: "".join(draw.choices(letters, k=32)) for name in NAMES}
        self.canaries["HF_TOKEN"] = "hf_" + self.canaries["HF_TOKEN"]
        self.hub = Hub()
        for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "DPO_TRACEBACK", "DPO_OUTPUTS", "DPO_CACHE"):
            os.environ.pop(name, None)
        os.environ |= self.canaries | {
            "HF_ENDPOINT": self.hub.address, "HF_HOME": str(self.root / "hf"),
            "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        if library := torture_preload.build(self.root):
            torture_preload.load_first(library)
            self.preload = True
        self._numbers = itertools.count()
        self.model = tiny.make_model(self.root / "model")
        self.pairs = tiny.make_pairs(self.root / "pairs.jsonl", 60)

    def draw(self, name: str) -> random.Random:
        """The random numbers of a case."""
        return random.Random(f"{self.seed}/{name}")

    def words(self, option: str, *more: str) -> list[str]:
        """The command line of a run of 8 steps with checkpoints at 3 and 6."""
        return tiny.arguments(self.model, self.pairs, f"lora={option}", HELD_OUT, *more)

    def start(self, verb: str, argv: Sequence[str], cwd: Path, **how: Any) -> Running:
        """A verb with outputs/ and cache/ under `cwd`."""
        own = {"DPO_OUTPUTS": str(cwd / "outputs"), "DPO_CACHE": str(cwd / "cache")}
        folder = self.root / "said"
        folder.mkdir(exist_ok=True)
        how["environment"] = own | how.get("environment", {})
        return start(verb, argv, cwd, folder / f"{next(self._numbers)}.txt", **how)

    def run(self, verb: str, argv: Sequence[str], cwd: Path, limit: float = LIMIT, **how: Any) -> Ended:
        """`start`, and wait for the end."""
        return self.ended(self.start(verb, argv, cwd, **how), limit)

    def ended(self, running: Running, limit: float = LIMIT) -> Ended:
        """Wait for the end, and keep what was said."""
        ended = running.wait(limit)
        self.said.append(ended.output)
        running.output.unlink(missing_ok=True)
        return ended

    def forget(self) -> None:
        """Begin another case."""
        self.said.clear()
        self.hub.asked.clear()

    @cache  # noqa: B019 - one world a process
    def undisturbed(self, option: str, *more: str) -> Outcome:
        """Weights and metric lines of a run that nobody disturbed."""
        return tiny.outcome(self.template(option, *more))

    @cache  # noqa: B019
    def template(self, option: str, *more: str) -> Path:
        """A working folder with a complete run; to be copied, not written to."""
        cwd = self.root / "templates" / f"{option}{len(more)}{abs(hash(more)) % 1000}"
        cwd.mkdir(parents=True)
        ended = self.run("train", self.words(option, *more), cwd)
        assert ended.code == 0, ended.output
        self.seconds[option] = ended.seconds
        return cwd

    @cache  # noqa: B019
    def interrupted(self, option: str, *more: str) -> Path:
        """A working folder with a run killed in step 8, checkpoints at 3 and 6; to be copied."""
        cwd = self.root / "templates" / f"{option}-interrupted{len(more)}"
        cwd.mkdir(parents=True)
        ended = self.run("train", self.words(option, *more), cwd, at=[("step", 8, tiny.KILL)])
        assert ended.code == -9, ended.output
        return cwd

    def same(self, cwd: Path, option: str, folder: Path | None = None) -> str | None:
        """None when the run under `cwd` ended as an undisturbed one does, bit for bit; else how it differs."""
        found = tiny.folders(cwd)
        if folder is None and len(found) != 1:
            return f"{len(found)} run folders"
        try:
            weights, lines = tiny.outcome(cwd) if folder is None else outcome_of(folder)
        except (OSError, ValueError, KeyError) as error:
            return f"no result to read: {type(error).__name__}: {error}"
        expected, expected_lines = self.undisturbed(option)
        if weights != expected:
            return "another adapter than the undisturbed run's"
        if lines != expected_lines:
            return f"{len(lines)} metric lines that are not the undisturbed run's {len(expected_lines)}"
        return None

    def completes(self, cwd: Path, option: str, words: Sequence[str] = ()) -> str | None:
        """None when the same command, given once more, ends like an undisturbed run; one that was complete already,
        killed after its last word, would begin another."""
        if any(tiny.record(cwd)[1]["status"] == "complete" for _ in tiny.folders(cwd)):
            return self.same(cwd, option)
        ended = self.run("train", words or self.words(option), cwd)
        if ended.code != 0:
            return ended.fault() or f"exit {ended.code} when started again: {ended.output[-300:]!r}"
        return self.same(cwd, option)

    def leaked(self, folder: Path) -> str | None:
        """Where a canary lies: in the tree, in what was printed, or in what the hub was asked."""
        secrets = {name: value.encode() for name, value in self.canaries.items()}
        for path in (p for p in folder.rglob("*") if p.is_file() and not p.is_symlink()):
            data = path.read_bytes()
            for name, value in secrets.items():
                if value in data:
                    return f"{name} lies in {path.relative_to(folder)}"
        for text, place in [*((s, "the output") for s in self.said), *((a, "a request") for a in self.hub.asked)]:
            for name, canary in self.canaries.items():
                if canary in text:
                    return f"{name} is in {place}: {text[:200]!r}"
        return None


def outcome_of(folder: Path) -> Outcome:
    """`tiny.outcome` of one run among several under a working folder."""
    alone = folder.parents[2] / f".alone-{folder.name}"
    (alone / "outputs" / "run").mkdir(parents=True)
    (alone / "outputs" / "run" / folder.name).symlink_to(folder)
    try:
        return tiny.outcome(alone)
    finally:
        shutil.rmtree(alone)


class Hub(ThreadingHTTPServer):
    """A hub on loopback that has nothing and notes what it is asked; the token of its own header is its due."""

    daemon_threads = True

    def __init__(self) -> None:
        self.asked: list[str] = []
        super().__init__(("127.0.0.1", 0), _Nothing)
        self.address = f"http://127.0.0.1:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, daemon=True).start()


class _Nothing(BaseHTTPRequestHandler):
    server: Hub

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        kept = [f"{name}: {value}" for name, value in self.headers.items() if name.lower() != "authorization"]
        self.server.asked.append("\n".join([f"{self.command} {self.path}", *kept, body.decode(errors="replace")]))
        self.send_response(404)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_HEAD = do_POST = do_PUT = _answer

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""


def interleave(*lists: Iterable[Case]) -> list[Case]:
    """One of each in turn."""
    turns = itertools.zip_longest(*lists)
    return [case for turn in turns for case in turn if case is not None]


class NotHereError(Exception):
    """A part that this machine cannot try, in words."""
