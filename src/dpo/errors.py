"""Errors a user can cause or meet, each with its exit code. Their text is one to three lines: what, where, allowed."""

from __future__ import annotations

import errno
import os
import re


class DpoError(Exception):
    """Base of every expected failure: printed without a traceback, ends the process with `exit_code`."""

    exit_code = 1


class ConfigError(DpoError):
    """An unknown key, a wrong type, a value out of range, a combination that cannot work."""

    exit_code = 2


class DataError(DpoError):
    """Rows that cannot be used: `file:row/field: reason`."""

    exit_code = 3


class CheckpointError(DpoError):
    """A checkpoint or cache entry that is torn, altered, or belongs to another run."""

    exit_code = 4


class Diverged(DpoError):
    """A loss or gradient that is not finite."""

    exit_code = 5


class OutOfMemory(DpoError):
    """No micro-batch is small enough for the memory at hand."""

    exit_code = 6


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on a device or on the host; torch's own errors are known without importing it."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


class DiskFull(DpoError):
    """Not enough room for a checkpoint or the final adapter."""

    exit_code = 7


def system_error(error: BaseException) -> OSError | None:
    """What the system refused: `error` itself, or what torch and safetensors make of it; None for anything else.

    Without importing either: safetensors writes the number into its text, and torch's writer only knows that fewer
    bytes arrived than it sent, which a full disk does.
    """
    if isinstance(error, OSError):
        # Errors of hubs and connections are of this class too; they have no number, or another meaning.
        known = error.errno is not None and not isinstance(error, (ConnectionError, TimeoutError))
        return error if known else None
    if found := re.search(r"os error (\d+)", str(error)):
        return OSError(int(found[1]), os.strerror(int(found[1])))
    if isinstance(error, RuntimeError) and any(sign in str(error) for sign in SHORT_WRITES):
        behind = error.__cause__ or error.__context__
        wrapped = None if behind is None else system_error(behind)
        return wrapped or OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return None


SHORT_WRITES = ("unexpected pos", "PytorchStreamWriter failed writing", "file write failed", "No space left")


def is_disk_full(error: BaseException) -> bool:
    """Whether there was no room left for what was written, on the disk or in the user's share of it."""
    behind = system_error(error)
    return behind is not None and behind.errno in (errno.ENOSPC, errno.EDQUOT)


class NetworkError(DpoError):
    """A hub or another host that is unreachable, stalled, gated or lacks the thing asked for."""

    exit_code = 8


class Refused(DpoError):
    """Something that would be unsafe: remote code without a pin, pickles, secrets on the command line."""

    exit_code = 9


class Interrupted(DpoError):
    """SIGINT or SIGTERM; `signal_number` gives the exit code 128 + n."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"interrupted by signal {signal_number}")
        self.exit_code = 128 + signal_number
