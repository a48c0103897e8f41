"""Trackers behind one small interface; the run directory has everything without them."""

from __future__ import annotations

import hashlib
import netrc
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from dpo.config.tracking import Tracking, Wandb, WandbMode
from dpo.errors import NetworkError

PROBE_SECONDS = 2.0


class Tracker(Protocol):
    """What a run tells a tracker."""

    where: str

    def log(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        """Metrics of one step under `train/...` or `eval/...`."""

    def finish(self, exit_code: int) -> None:
        """Close; a non-zero code marks the run failed."""


class NoTracker:
    """Only the run directory."""

    where = "run directory only"

    def log(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        """Nothing."""

    def finish(self, exit_code: int) -> None:
        """Nothing."""


class WandbTracker:
    """One W&B run, whose id is a hash of the run directory's name: a resumed run is the same run."""

    def __init__(self, settings: Wandb, folder: Path, config: Mapping[str, Any], group: str | None) -> None:
        import wandb

        online = wandb_is_online(settings.mode)
        self._run = wandb.init(
            project=settings.project,
            entity=settings.entity,
            group=settings.group or group,
            job_type="train",
            name=folder.name,
            id=hashlib.sha256("/".join(folder.absolute().parts[-3:]).encode()).hexdigest()[:16],
            resume="allow" if online else None,
            dir=str(folder),
            mode="online" if online else "offline",
            # One nested key; TRL's and the Trainer's own hundreds of flat ones stay out.
            config={"config": dict(config)},
            settings=wandb.Settings(silent=True, console="off", init_timeout=20, x_disable_meta=True, disable_git=True),
        )
        self.where = f"wandb, {'online' if online else 'offline (upload with `wandb sync`)'}"

    def log(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        """See Tracker."""
        self._run.log({f"{kind}/{name}": value for name, value in values.items()} | {"step": step}, step=step)

    def finish(self, exit_code: int) -> None:
        """See Tracker."""
        self._run.finish(exit_code=exit_code)


def wandb_is_online(mode: WandbMode) -> bool:
    """Decide without a prompt and within seconds: online needs a key and a server that accepts a connection."""
    if mode is WandbMode.offline:
        return False
    import wandb

    base = urlsplit(wandb.Settings().base_url)
    host, port = base.hostname or "", base.port or (443 if base.scheme == "https" else 80)
    has_key = bool(os.environ.get("WANDB_API_KEY")) or _netrc_has(host)
    if has_key:
        try:
            socket.create_connection((host, port), timeout=PROBE_SECONDS).close()
            return True
        except OSError:
            pass
    if mode is WandbMode.online:
        why = f"{host} does not answer" if has_key else "no key found; set WANDB_API_KEY or run `wandb login`"
        raise NetworkError(f"tracking.mode=online: {why}\ntracking.mode=auto falls back to offline")
    return False


def _netrc_has(host: str) -> bool:
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def build_tracker(tracking: Tracking, folder: Path, config: Mapping[str, Any], group: str | None) -> Tracker:
    """The tracker a config names. A tracker that cannot start never stops a run unless it was demanded."""
    if not isinstance(tracking, Wandb):
        return NoTracker()
    try:
        return WandbTracker(tracking, folder, config, group)
    except NetworkError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever a tracker's client raises, training goes on
        print(
            f"tracking: wandb did not start ({type(error).__name__}); metrics go to the run directory only", flush=True
        )
        return NoTracker()
