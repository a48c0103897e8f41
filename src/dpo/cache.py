"""`python -m dpo.cache`: what the cache folder holds; `prune` removes what was not used for a while.

python -m dpo.cache                  show
python -m dpo.cache prune days=30    forget reference log-probs unused for 30 days, verdicts and answers older than that
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from dpo.caches.folder import cache_folder
from dpo.caches.reference import ReferenceCache
from dpo.config.failures import exits
from dpo.config.nearest import nearest
from dpo.errors import ConfigError
from dpo.evaluation.baseline import BaselineAnswers
from dpo.evaluation.judges.cache import VerdictCache

DAY = 86400.0


def reference_file() -> Path:
    """Where every run on this machine keeps its reference log-probs."""
    return cache_folder("reference") / "log_probs.sqlite"


def verdict_file() -> Path:
    """Where the verdicts of all judges on this machine are kept."""
    return cache_folder("verdicts") / "verdicts.sqlite"


def answer_file() -> Path:
    """Where the baselines' answers to evaluations are kept."""
    return cache_folder("answers") / "baseline.sqlite"


def show() -> None:
    """Print each folder's size, for the reference log-probs one line a context, for verdicts one a judge."""
    root = cache_folder("reference").parent
    for folder in sorted(path for path in root.iterdir() if path.is_dir()):
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        print(f"{folder}: {size / 1e6:.1f} MB")
    if reference_file().exists():
        for context, entries, used in ReferenceCache(reference_file()).contexts():
            days = (time.time() - used) / DAY
            print(f"  reference {context[:12]}: {entries:,} pairs, last used {days:.1f} days ago")
    if verdict_file().exists():
        for judge, count in VerdictCache(verdict_file()).counts():
            print(f"  verdicts of {judge}: {count:,}")


def prune(days: float) -> None:
    """Remove reference log-probs whose context was not used for `days` days, verdicts and answers made longer ago than
    that, and damaged files set aside."""
    every = (reference_file(), verdict_file(), answer_file())
    files = [file for file in every if file.exists()]
    for file in every:
        for aside in file.parent.glob("*.damaged-*"):
            aside.unlink()
    if reference_file() in files:
        cache = ReferenceCache(reference_file())
        old = [context for context, _, used in cache.contexts() if time.time() - used >= days * DAY]
        print(f"removed {cache.prune(old):,} pairs of {len(old)} contexts")
    if verdict_file() in files:
        print(f"removed {VerdictCache(verdict_file()).prune(days * DAY):,} verdicts")
    if answer_file() in files:
        print(f"removed {BaselineAnswers(answer_file()).prune(days * DAY):,} lists of answers")
    if not files:
        print("nothing to prune")


def run(arguments: list[str]) -> None:
    """Parse and do; raises ConfigError for anything unknown."""
    verb = arguments[0] if arguments else "show"
    rest = dict(argument.partition("=")[::2] for argument in arguments[1:])
    if verb in ("-h", "--help"):
        print(__doc__)
    elif verb == "show" and not rest:
        show()
    elif verb == "prune" and set(rest) <= {"days"}:
        try:
            days = float(rest.get("days", "30"))
        except ValueError:
            raise ConfigError(f"days={rest['days']}: not a number") from None
        if not days >= 0:
            raise ConfigError(f"days={rest['days']}: must be at least 0")
        prune(days)
    else:
        known = {"show": [], "prune": ["days"]}
        if verb not in known:
            raise ConfigError(f"{verb}: unknown command{nearest(verb, list(known))}; one of show, prune")
        unknown = next(key for key in rest if key not in known[verb])
        raise ConfigError(f"{unknown}: unknown key of {verb}{nearest(unknown, known[verb])}")


def main() -> None:
    """Entry point: exit code 0, or that of the error."""
    exits(lambda: run(sys.argv[1:]))


if __name__ == "__main__":
    main()
