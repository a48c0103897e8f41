"""What the system refuses, an open, a write, a lock, as a user should read it: which file, why, and what to do."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from dpo.config.roots import cache_root, outputs_root
from dpo.errors import CheckpointError, ConfigError, DiskFull, DpoError, is_disk_full, system_error

ADVICE = {
    errno.EMFILE: "allow more with `ulimit -n`",
    errno.ENFILE: "the whole machine has too many; end what is not needed",
    errno.EIO: "the disk or its connection fails; check it before anything is written there again",
    errno.EROFS: "mount it writable, or name another folder",
    errno.EISDIR: "a folder stands where a file belongs; move it away",
    errno.ENOTDIR: "a file stands where a folder belongs; move it away",
}


def from_system(error: BaseException) -> DpoError | None:
    """7 for a full disk, 4 for a file of a run or of the cache, 2 for any other; None where no system call failed."""
    behind = system_error(error)
    if behind is None or behind.errno is None:
        return None
    named = behind.filename if isinstance(behind.filename, (str, bytes, os.PathLike)) else None
    place = Path(os.fsdecode(named)).absolute() if named else None
    why = os.strerror(behind.errno).lower()
    what = f"{place}: {why}" if place else why
    if is_disk_full(error):
        return DiskFull(f"{what}; free some room and run the same command again")
    advice = [ADVICE[behind.errno]] if behind.errno in ADVICE else []
    kind: type[DpoError] = ConfigError
    if place is not None and (
        _around(place, cache_root()) or any((up / "run.json").exists() for up in _parents(place))
    ):
        kind = CheckpointError
    if place is not None and _around(place, cache_root()):
        advice.append("$DPO_CACHE names another folder for the cache")
    elif place is not None and _around(place, outputs_root()):
        advice.append("$DPO_OUTPUTS names another folder for runs")
    return kind("\n".join([what, "; ".join(advice)]) if advice else what)


def _around(place: Path, folder: Path) -> bool:
    """In it, or on the way to it."""
    folder = folder.absolute()
    return place.is_relative_to(folder) or folder.is_relative_to(place)


def _parents(place: Path) -> list[Path]:
    return [up for up in place.parents if os.access(up, os.R_OK)]
