"""Which run directory a start writes to, decided and taken in one go: no two processes ever hold the same."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dpo.config.checks.given import check_inside
from dpo.config.parse import fingerprint
from dpo.config.read import config_yaml
from dpo.config.roots import outputs_root
from dpo.config.schema import Config
from dpo.errors import CheckpointError, ConfigError
from dpo.records.naming import run_folder
from dpo.records.owner import Owner
from dpo.records.process import ALIVE_SECONDS, is_alive, is_alive_elsewhere, silence
from dpo.records.run import Facts, Run, read_record

STATUS_OF = {5: "diverged", 6: "out_of_memory", 7: "disk_full", 130: "interrupted", 143: "interrupted"}
OWNER = "DPO_RUN_OWNER"
"""Set in ranks whose parent holds the run directory, to the name it holds it by."""


class Taken(ConfigError):
    """A run directory that another process writes to."""


def open_run(name: str, resume: str, facts: Facts, say: Callable[[str], None]) -> tuple[Run, bool]:
    """The run of this start, written to and owned by this process, and whether it is continued.

    auto: the newest unfinished run of this name and fingerprint that no live process writes to; never: a new one; else
    the folder given. Raises Taken, ConfigError, CheckpointError.
    """
    if resume not in ("auto", "never"):
        folder = run_folder(resume, "resume")
        try:
            # What another machine's clock says cannot be checked; the user can, and has named this run.
            return _go_on(folder, facts, believe=False), True
        except ConfigError as error:
            raise ConfigError(f"resume={resume}: {error}") from None
    root = outputs_root() / name
    if resume == "auto":
        for folder in sorted(root.glob(f"*-{facts.fingerprint}"), reverse=True):
            try:
                if (folder / "run.json").exists() and read_record(folder)["status"] != "complete":
                    return _go_on(folder, facts), True
            except (Taken, CheckpointError) as error:
                say(f"not continued: {error}")
            except ConfigError:
                continue  # completed since we looked
    return Run.begin(root, None, facts), False


def open_given(folder: Path, facts: Facts) -> tuple[Run, bool]:
    """The run of a folder that a sweep has decided: continued when there is one. Raises Taken and the like."""
    if not (folder / "run.json").exists():
        try:
            return Run.begin(folder.parent, folder.name, facts), False
        except FileExistsError:
            pass  # begun by another start since we looked; or no run, which the next line says
    return _go_on(folder, facts, complete=True), True


def join(folder: Path, owner: str, facts: Facts) -> tuple[Run, bool]:
    """The run that the parent of these ranks has opened as `owner` and holds for them; raises Taken."""
    if (record := read_record(folder)).get("owner") != owner:
        raise Taken(_who(folder, record))
    run = Run.go_on(folder, None, facts)
    return run, len(run.record["attempts"]) > 1


def open_here(config: Config) -> tuple[Run, bool]:
    """The run directory of this process, owned by it, and whether a run in it is continued."""
    facts = Facts(config_yaml(config), fingerprint(config), config.seed)
    # A sweep, or whoever starts several ranks, decides the folder and says so in the environment.
    given, owner = os.environ.get("DPO_RUN_FOLDER"), os.environ.pop(OWNER, None)
    if given and owner:
        return join(Path(given), owner, facts)
    if given:
        return open_given(Path(given), facts)
    return open_run(config.name, config.resume, facts, lambda line: print(line, flush=True))


def _go_on(folder: Path, facts: Facts, believe: bool = True, complete: bool = False) -> Run:
    check_inside(folder, CheckpointError)
    try:
        read_record(folder)
        owner = Owner(folder)
    except BlockingIOError:
        raise Taken(_who(folder, read_record(folder))) from None
    try:
        record = read_record(folder)
        if record["status"] == "running":
            alive = is_alive(record) and record["pid"] != os.getpid()
            if alive or (believe and is_alive_elsewhere(record)):
                raise Taken(_who(folder, record))
        if record["status"] == "complete" and not complete:
            raise ConfigError("this run is complete; use resume=never for a new one")
        return Run.go_on(folder, owner, facts)
    except BaseException:
        owner.release()
        raise


def _who(folder: Path, record: dict[str, Any]) -> str:
    who = f"process {record.get('pid')}"
    if not is_alive_elsewhere(record):
        return f"{folder}: {who} is still running it"
    return (
        f"{folder}: {who} on {record['host']} is still running it (last sign of life {silence(record):.0f} s ago; "
        f"after {ALIVE_SECONDS:.0f} s it counts as dead)\nresume={folder} takes it over, should it be dead"
    )
