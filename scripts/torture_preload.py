"""Strikes at the k-th file call of a process: the small library of torture_preload.c, built here and loaded first."""

from __future__ import annotations

import ctypes
import errno
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

OPEN, WRITE, SYNC, NAME, MAKE, REMOVE, CUT, READ = (1 << bit for bit in range(8))
CHANGES = OPEN | WRITE | SYNC | NAME | MAKE | REMOVE | CUT
WATCH, KILL, TEAR, FAIL = range(4)
# errno -> the calls it can come from, and whether it stays.
ERRORS: dict[int, tuple[int, bool]] = {
    errno.ENOSPC: (OPEN | WRITE | SYNC | MAKE | CUT, True),
    errno.EDQUOT: (OPEN | WRITE | SYNC | MAKE | CUT, True),
    errno.EIO: (WRITE | SYNC | READ | NAME, True),
    errno.EROFS: (OPEN | NAME | MAKE | REMOVE | CUT, True),
    errno.EACCES: (OPEN | NAME | MAKE | REMOVE | READ, True),
    errno.EMFILE: (OPEN | READ, True),
}


@dataclass(frozen=True)
class Arm:
    """What the library does in a process: at the `at`-th call of the kinds in `kinds` under `folder`."""

    folder: str
    kinds: int = CHANGES
    at: int = 0
    action: int = WATCH
    error: int = 0
    lasting: bool = False
    trace: str | None = None
    """A file that gets a line a call."""


def build(folder: Path) -> Path | None:
    """Compile the library into `folder`; None when there is no compiler, or it cannot."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        return None
    out = folder / "torture_preload.so"
    source = Path(__file__).with_suffix(".c")
    done = subprocess.run([compiler, "-O1", "-shared", "-fPIC", "-o", out, source, "-ldl"], capture_output=True)
    return out if done.returncode == 0 else None


def load_first(library: Path) -> None:
    """Have every process started from here load the library; must come before the fork server starts."""
    os.environ["LD_PRELOAD"] = str(library)


def arm(how: Arm) -> None:
    """Called in the process that is to be struck."""
    trace = -1 if how.trace is None else os.open(how.trace, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    strike = ctypes.CDLL(None).torture_arm
    strike.argtypes = [ctypes.c_char_p, ctypes.c_int, ctypes.c_long, *[ctypes.c_int] * 4]
    strike(how.folder.encode(), how.kinds, how.at, how.action, how.error, int(how.lasting), trace)


@dataclass(frozen=True)
class Call:
    """One call of an undisturbed process, numbered from 1."""

    number: int
    kind: int
    name: str
    path: str

    @property
    def shape(self) -> str:
        """The call without what differs from process to process."""
        return f"{self.name} {re.sub('[0-9a-f]{6,}|[0-9]+', 'N', self.path)}"


def read_trace(path: Path, folder: str) -> list[Call]:
    """The calls of a process that was watched, paths relative to `folder`."""
    calls = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        kind, name, where = line.split(" ", 2)
        calls.append(Call(number, int(kind), name, where.removeprefix(folder)))
    return calls
