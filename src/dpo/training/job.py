"""One training job: its config, run directory, ledger and signals, and a truthful record of how it ended."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dpo.config.parse import fingerprint
from dpo.config.read import config_yaml
from dpo.config.schema import Config
from dpo.errors import DpoError
from dpo.records.ledger import Ledger
from dpo.records.run import Run, choose_folder
from dpo.training.interrupts import Interrupts

STATUS_OF = {5: "diverged", 6: "out_of_memory", 7: "disk_full", 130: "interrupted", 143: "interrupted"}


@dataclass
class Job:
    """What every stage of a run needs."""

    config: Config
    run: Run
    ledger: Ledger
    interrupts: Interrupts

    def say(self, line: str) -> None:
        """One line of the run's story on the terminal."""
        print(line, flush=True)


@contextlib.contextmanager
def open_job(config: Config) -> Iterator[Job]:
    """Choose or continue the run directory; whatever ends the block, run.json says so truthfully."""
    mark = fingerprint(config)
    # A sweep decides its jobs' folders itself and says so in the environment.
    given = os.environ.get("DPO_RUN_FOLDER")
    if given:
        folder, continued = Path(given), (Path(given) / "run.json").is_file()
    else:
        folder, continued = choose_folder(config.name, mark, config.resume)
    run = Run.open(folder, continued, config_yaml(config), mark, config.seed)
    job = Job(config, run, Ledger(folder, config.hardware.hourly_rate), Interrupts())
    job.say(f"run directory {folder}{' (continued)' if continued else ''}")
    try:
        with job.interrupts:
            yield job
            with job.interrupts.deferred():
                run.finish("complete", None, 0)
    except BaseException as error:
        code = exit_code(error)
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        # A full disk may refuse even this line; run.json then still says running, and its dead pid says killed.
        with contextlib.suppress(OSError):
            run.finish(STATUS_OF.get(code, "failed"), reason, code)
        raise
    job.say(f"done: {folder}")


def exit_code(error: BaseException) -> int:
    """The exit code an error ends the process with."""
    if isinstance(error, DpoError):
        return error.exit_code
    return 7 if isinstance(error, OSError) and error.errno == 28 else 1
