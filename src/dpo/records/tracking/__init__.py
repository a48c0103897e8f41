"""Trackers behind one small interface, without torch; the run directory has everything without them."""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dpo.config.tracking import Tracked, Tracking
from dpo.errors import NetworkError
from dpo.records.tracking.identity import identify
from dpo.records.tracking.tracker import Guarded, NoTracker, Tracker

__all__ = ["NoTracker", "Tracker", "build_tracker"]

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
    tracking: Tracking, folder: Path, config: Mapping[str, Any], group: str | None, job_type: str = "train"
) -> Tracker:
    """The tracker a config names. One that cannot start never stops a run, unless going online was demanded."""
    if not isinstance(tracking, Tracked):
        return NoTracker()
    if tracking.backend == "wandb" and os.environ.get("WANDB_MODE") == "disabled":
        print("tracking: WANDB_MODE=disabled", flush=True)
        return NoTracker()
    module, name, install = BACKENDS[tracking.backend]
    who = identify(folder, tracking.group or group, job_type)
    try:
        backend = getattr(importlib.import_module(f"dpo.records.tracking.{module}"), name)
        return Guarded(backend(tracking, folder, config, who))
    except NetworkError:
        raise
    except ModuleNotFoundError as error:
        why = f"the package {error.name} is missing ({install})"
    except Exception as error:  # noqa: BLE001 - whatever a tracker's client raises, training goes on
        why = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no reason given'}"
    print(f"tracking: {tracking.backend} did not start, {why}; metrics go to the run directory only", flush=True)
    return NoTracker()
