"""Who a run is, the same in every tracker."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Identity:
    """`id` is a hash of where the run directory is, so that a continued run is the same run; `group` its sweep."""

    name: str
    id: str
    group: str | None
    job_type: str


def identify(folder: Path, group: str | None, job_type: str) -> Identity:
    """The identity of a run directory's run. An evaluation is a run beside the training run."""
    place = "/".join(folder.absolute().parts[-3:])
    suffix = "" if job_type == "train" else f"-{job_type}"
    return Identity(folder.name + suffix, hashlib.sha256(f"{place}{suffix}".encode()).hexdigest()[:16], group, job_type)
