"""Errors a user can cause or meet, each with its exit code. Their text is one to three lines: what, where, allowed."""

from __future__ import annotations


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
