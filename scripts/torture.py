"""Attacks the running product where it promises something, and ends in one table.

    python scripts/torture.py [--minutes 30] [--parts kills,crashes,...] [--seed 0] [--case NAME] [--folder DIR]

Everything runs on a tiny random model, as processes that are killed, starved, lied to and given damaged or hostile
files; what must come of it stands in README.md (exit codes, resuming to the bit). The cases of a part are drawn by the
seed and end when its share of the minutes is spent. A miss is named with the command that repeats it alone; exits 1
when there is one.
"""

from __future__ import annotations

import argparse
import fnmatch
import hashlib
import os
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "scripts"), str(ROOT / "tests" / "kit")]
# What is forked imports the same modules.
os.environ["PYTHONPATH"] = os.pathsep.join([*sys.path[:2], os.environ.get("PYTHONPATH", "")])

from torture_calls import crashes, errors  # noqa: E402
from torture_damage import corruption  # noqa: E402
from torture_hostile import hostile  # noqa: E402
from torture_kills import kills  # noqa: E402
from torture_room import disks, outputs  # noqa: E402
from torture_signals import signals  # noqa: E402
from torture_steps import steps  # noqa: E402
from torture_together import together  # noqa: E402
from torture_words import words  # noqa: E402
from torture_world import OPTIONS, Case, NotHereError, World  # noqa: E402

SHORT = 5.0
"""Minutes under which only one of LoRA and NF4 is tried."""


@dataclass(frozen=True)
class Part:
    """Cases of one kind, and the share of the time they get."""

    cases: Callable[[World], list[Case]]
    share: float
    preload: bool = False
    """Whether it needs the library of torture_preload."""


PARTS = {
    "kills": Part(kills, 4),
    "crashes": Part(crashes, 2, preload=True),
    "errors": Part(errors, 2, preload=True),
    "corruption": Part(corruption, 4),
    "signals": Part(signals, 2),
    "steps": Part(steps, 1),
    "disks": Part(disks, 1),
    "outputs": Part(outputs, 1),
    "together": Part(together, 1.5),
    "hostile": Part(hostile, 4),
    "words": Part(words, 3),
}


@dataclass
class Tally:
    """What came of a part. `known`: how many cases there are; `skipped`: why none was tried."""

    known: int = 0
    tried: int = 0
    missed: dict[str, str] = field(default_factory=dict)
    skipped: str = ""
    seconds: float = 0.0

    def row(self, name: str) -> str:
        """Its line of the table."""
        if self.skipped:
            return f"{name:10} {'-':>6} {'-':>6} {'-':>6}  skipped: {self.skipped}"
        fine = self.tried - len(self.missed)
        figure = f"{fine} of {self.tried} as promised; {self.known} known, {self.seconds:.0f} s"
        return f"{name:10} {self.tried:6} {fine:6} {len(self.missed):6}  {figure}"


def run_part(world: World, name: str, seconds: float, only: str | None) -> Tally:
    """Try the cases of a part for `seconds`, at least one."""
    part, tally, began = PARTS[name], Tally(), time.monotonic()
    if part.preload and not world.preload:
        tally.skipped = "no C compiler for the preload library"
        return tally
    try:
        cases = part.cases(world)
    except NotHereError as reason:
        tally.skipped = str(reason)
        return tally
    tally.known = len(cases)
    for case in cases:
        if only is not None and not fnmatch.fnmatchcase(case.name, only):
            continue
        if tally.tried and time.monotonic() - began > seconds:
            break
        if wrong := attempt(world, case):
            tally.missed[case.name] = wrong
            print(f"MISS {case.name}: {wrong}", flush=True)
        tally.tried += 1
    tally.seconds = time.monotonic() - began
    return tally


def attempt(world: World, case: Case) -> str | None:
    """What went wrong in a case; its folder stays when something did."""
    world.forget()
    folder = world.root / "cases" / hashlib.sha256(case.name.encode()).hexdigest()[:12]
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        wrong = case.check(folder) or world.leaked(folder)
    except Exception as error:  # noqa: BLE001 - a check that breaks has met something nobody thought of
        where = traceback.extract_tb(error.__traceback__)[-1]
        wrong = f"the check itself: {type(error).__name__}: {error} ({where.name}:{where.lineno})"
    if wrong is None:
        shutil.rmtree(folder, ignore_errors=True)
    return wrong


def main() -> None:
    """Run the parts, print the table, exit 1 on any miss."""
    options = parse()
    aside = "" if options.folder else tempfile.mkdtemp(prefix="torture-")
    root = Path(options.folder or aside)
    names = options.parts.split(",") if options.parts else list(PARTS)
    if options.case:
        names = [options.case.split("/")[0]]
    if unknown := [name for name in names if name not in PARTS]:
        sys.exit(f"error: --parts: no part {unknown[0]}; one of {', '.join(PARTS)}")
    # A short time goes to one of the two.
    kinds = OPTIONS if options.minutes >= SHORT else (OPTIONS[options.seed % 2],)
    world = World(root / f"seed-{options.seed}", options.seed, kinds)
    left, deadline, tallies = sum(PARTS[name].share for name in names), time.monotonic() + 60 * options.minutes, {}
    for name in names:
        # What a part leaves of its share goes to the others.
        share = PARTS[name].share / left * max(0.0, deadline - time.monotonic())
        left -= PARTS[name].share
        tallies[name] = run_part(world, name, share, options.case)
        print(tallies[name].row(name), flush=True)
    print(f"\n{'part':10} {'tried':>6} {'fine':>6} {'missed':>6}  figure")
    for name, tally in tallies.items():
        print(tally.row(name))
    for tally in tallies.values():
        for case, wrong in tally.missed.items():
            print(f"\n{case}: {wrong}\n  python scripts/torture.py --seed {options.seed} --case {case} --folder DIR")
    if aside:
        shutil.rmtree(aside, ignore_errors=True)
    sys.exit(int(any(tally.missed for tally in tallies.values())))


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0, help="for all parts together")
    parser.add_argument("--parts", help=f"some of {','.join(PARTS)}")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--case", help="one case alone, by its name; * stands for anything")
    parser.add_argument("--folder", help="where to work; the folders of cases that missed stay there")
    return parser.parse_args()


if __name__ == "__main__":
    main()
