"""What a probe found."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """`level`: ok, warn (some options will not work) or fail (the default job cannot run); `fix` is what to do."""

    name: str
    level: str
    line: str
    fix: str = ""
