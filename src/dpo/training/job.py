"""One training job: its config, run directory, ledger and signals, and a truthful record of how it ended."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpo.config.failures import translate
from dpo.config.schema import Config
from dpo.distributed.ranks import ALONE, LostRank, Ranks
from dpo.errors import Interrupted
from dpo.records.ledger import Ledger
from dpo.records.opening import STATUS_OF, open_here
from dpo.records.owner import Lost, signs_of_life
from dpo.records.rows import Mark
from dpo.records.run import Run
from dpo.training.interrupts import Interrupts

ECHO_SECONDS = 1.0
"""A cluster's signal reaches a rank twice, from its launcher and from the scheduler: within this time it is one."""


@dataclass
class Job:
    """What every stage of a run needs."""

    config: Config
    run: Run
    ledger: Ledger
    interrupts: Interrupts
    ranks: Ranks

    def say(self, line: str) -> None:
        """One line of the run's story on the terminal."""
        print(line, flush=True)


class Follower(Run):
    """The run as ranks other than 0 see it: they write nothing."""

    def save(self) -> None:
        """Nothing."""

    def sign_of_life(self) -> None:
        """Nothing."""

    def log(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        """Nothing."""

    def continue_at(self, step: int, mark: Mark, anyway: bool, say: Callable[[str], None]) -> None:
        """Nothing."""


class FollowersLedger(Ledger):
    """Time and pairs of ranks other than 0; rank 0's ledger charges for all of them."""

    def flush(self) -> None:
        """Nothing."""


def begin(config: Config, ranks: Ranks) -> tuple[Run, bool]:
    """Open the run directory on rank 0 and show its record to the others."""
    if not ranks.first:
        told: tuple[Path, bool, dict[str, Any]] | None = ranks.from_first(None)
        if told is None:
            raise LostRank("rank 0 could not open the run directory")
        return Follower(told[0], told[2]), told[1]
    try:
        run, continued = open_here(config)
    except BaseException:
        ranks.from_first(None)
        raise
    ranks.from_first((run.folder, continued, run.record))
    return run, continued


@contextlib.contextmanager
def open_job(config: Config, ranks: Ranks = ALONE) -> Iterator[Job]:
    """Choose or continue the run directory; whatever ends the block, run.json says so truthfully."""
    interrupts = Interrupts(0.0 if ranks.size == 1 else ECHO_SECONDS)
    with interrupts:
        with interrupts.deferred(check=False):
            run, continued = begin(config, ranks)
        ledger = (Ledger if ranks.first else FollowersLedger)(run.folder, config.hardware.hourly_rate)
        job = Job(config, run, ledger, interrupts, ranks)
        with _ending(job), signs_of_life(run.sign_of_life):
            job.say(f"run directory {run.folder}{' (continued)' if continued else ''}")
            interrupts.check()
            yield job
            interrupts.over(0)
            run.finish("complete", None, 0)
    job.say(f"done: {run.folder}")


@contextlib.contextmanager
def _ending(job: Job) -> Iterator[None]:
    """Whatever ends the block, run.json says so."""
    try:
        yield
    except BaseException as error:
        code = exit_code(error)
        job.interrupts.over(code)
        if job.ranks.size > 1:
            # A launcher tells the ranks that are left to stop; this one is about to, and has its reason to print.
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        said = str(translate(error) or error)
        reason = said.splitlines()[0] if said else type(error).__name__
        # A full disk may refuse even this line; run.json then still says running, and its dead pid says killed.
        with contextlib.suppress(OSError, Lost):
            job.run.finish(STATUS_OF.get(code, "failed"), reason, code)
        if isinstance(error, Interrupted) and job.ranks.first:
            error.args = (f"{error}\n{_saved(job)}",)
        raise


def _saved(job: Job) -> str:
    """What an interrupted run has kept, and how it goes on."""
    steps = [int(path.name[5:]) for path in (job.run.folder / "checkpoints").glob("step-*") if path.name[5:].isdigit()]
    kept = f"step {max(steps)} is saved in {job.run.folder}" if steps else f"no step is saved yet in {job.run.folder}"
    # Another resume= than auto's would begin or look elsewhere.
    again = "the same command" if job.config.resume != "never" else f"resume={job.run.folder} instead of resume=never"
    return f"{kept}; {again} continues it"


def exit_code(error: BaseException) -> int:
    """The exit code an error ends the process with."""
    if isinstance(error, SystemExit) and isinstance(error.code, int):
        return error.code
    if isinstance(error, KeyboardInterrupt):
        return 130
    known = translate(error)
    return 1 if known is None else known.exit_code
