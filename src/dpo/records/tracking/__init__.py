"""Trackers behind one small interface, without torch; the run directory has everything without them."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from dpo.config.identity import flat
from dpo.config.tracking import Tracked, Tracking
from dpo.errors import NetworkError
from dpo.records.tracking.identity import identify
from dpo.records.tracking.tracker import Evaluated, Guarded, NoTracker, Tracker

__all__ = ["Evaluated", "NoTracker", "Tracker", "build_tracker"]

# backend -> (module beside this one, class, what installs it)
BACKENDS = {
    "wandb": ("wandb", "WandbTracker", "pip install wandb"),
    "trackio": ("trackio", "TrackioTracker", "pip install 'dpo-train[trackio]', or pip install trackio"),
    "tensorboard": (
        "tensorboard",
        "TensorboardTracker",
        "pip install 'dpo-train[tensorboard]', or pip install tensorboard",
    ),
}


def build_tracker(
    tracking: Tracking,
    folder: Path,
    config: Mapping[str, Any],
    record: Mapping[str, Any],
    words: Iterable[str] = (),
) -> Tracker:
    """The tracker a config names, with the run of `folder` open in it: begun, or gone on with where `record` (run.json)
    has it tracked already. `words` are the overrides that name a new one.

    One that cannot start never stops a run, unless going online was demanded.
    """
    if not isinstance(tracking, Tracked):
        return NoTracker()
    if tracking.backend == "wandb" and os.environ.get("WANDB_MODE") == "disabled":
        print("tracking: WANDB_MODE=disabled", flush=True)
        return NoTracker()
    before = record.get("tracked") or {}
    if before.get("backend") != tracking.backend:
        record = {**record, "tracked": None}
    module, name, install = BACKENDS[tracking.backend]
    who = identify(folder, record, tracking.group, words)
    # Not how a sweep around it measures its jobs.
    settings = flat({key: value for key, value in config.items() if key != "sweep"}) | {
        f"git.{key}": value for key, value in (who.git or {}).items()
    }
    try:
        backend = getattr(importlib.import_module(f"dpo.records.tracking.{module}"), name)
        return Guarded(backend(tracking, folder, settings, who))
    except NetworkError:
        raise
    except ModuleNotFoundError as error:
        why = f"the package {error.name} is missing ({install})"
    except Exception as error:  # noqa: BLE001 - whatever a tracker's client raises, training goes on
        why = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no reason given'}"
    print(f"tracking: {tracking.backend} did not start, {why}; metrics go to the run directory only", flush=True)
    return NoTracker()
