"""Weights & Biases, online only where a key is found and its server answers, else offline into the run directory."""

from __future__ import annotations

import netrc
import os
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from dpo.config.tracking import Wandb, WandbMode
from dpo.errors import NetworkError
from dpo.records.tracking.identity import Identity

PROBE_SECONDS = 3.0
INIT_SECONDS = 8.0
FINISH_SECONDS = 5.0


class WandbTracker:
    """One W&B run. What a network loses stays in the run directory, for `wandb sync`."""

    def __init__(self, settings: Wandb, folder: Path, config: Mapping[str, Any], who: Identity) -> None:
        # Its own crash reports and telemetry: a stalled server would hold the end of the process for 20 s with them.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        def start(online: bool) -> Any:
            return wandb.init(
                project=settings.project,
                entity=settings.entity,
                group=who.group,
                job_type=who.job_type,
                name=who.name,
                id=who.id,
                resume="allow" if online else None,
                dir=str(folder),
                mode="online" if online else "offline",
                # One nested key; TRL's and the Trainer's own hundreds of flat ones stay out.
                config={"config": dict(config)},
                settings=wandb.Settings(
                    silent=True,
                    console="off",
                    init_timeout=INIT_SECONDS,
                    finish_timeout=FINISH_SECONDS,
                    # Its defaults retry for a day.
                    x_graphql_timeout_seconds=5,
                    x_graphql_retry_max=3,
                    x_graphql_retry_wait_max_seconds=2,
                    x_disable_meta=True,
                    disable_git=True,
                ),
            )

        why = why_offline(settings.mode)
        if why is None:
            try:
                self._run = start(online=True)
            except Exception as error:  # noqa: BLE001 - whatever kept it from going online, offline works
                why = f"{type(error).__name__}: {str(error).splitlines()[0]}"
                # Its service still holds the run's id, and would go on asking the server until the process ends.
                wandb.teardown()
        if why is None:
            self.where = f"wandb, online: {self._run.url}"
            return
        if settings.mode is WandbMode.online:
            raise NetworkError(f"tracking.mode=online: {why}\ntracking.mode=auto falls back to offline")
        self._run = start(online=False)
        self.where = f"wandb, offline: {why} (upload with `wandb sync`)"

    def log(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        """See Tracker."""
        self._run.log({f"{kind}/{name}": value for name, value in values.items()} | {"step": step}, step=step)

    def finish(self, exit_code: int) -> None:
        """See Tracker."""
        self._run.finish(exit_code=exit_code)


def why_offline(mode: WandbMode) -> str | None:
    """Why a run cannot go online, decided without a prompt and within seconds; None when it can."""
    if mode is WandbMode.offline or os.environ.get("WANDB_MODE") == "offline":
        return "asked for"
    import wandb

    # Settings() alone is the defaults; set up, they hold WANDB_BASE_URL and the settings files too.
    url = str(wandb.setup().settings.base_url)
    host = urlsplit(url).hostname or ""
    if not os.environ.get("WANDB_API_KEY") and not _netrc_has(host):
        return "no key found; set WANDB_API_KEY or run `wandb login`"
    return unreachable(url)


def unreachable(url: str) -> str | None:
    """Why the server of a base URL is of no use, or None when it answers within `PROBE_SECONDS`."""
    host = urlsplit(url).netloc
    found = [f"{host} does not answer within {PROBE_SECONDS:.0f} s"]

    # The API itself, since a health page may be answered by something in front of it. Needs no key.
    request = urllib.request.Request(  # noqa: S310
        f"{url.rstrip('/')}/graphql",
        data=b'{"query": "query Probe { serverInfo { cliVersionInfo } }"}',
        headers={"Content-Type": "application/json"},
    )

    def ask() -> None:
        try:
            with urllib.request.urlopen(request, timeout=PROBE_SECONDS):  # noqa: S310
                found.append("")
        except urllib.error.HTTPError as error:
            # A server that does not know this page is a server nevertheless.
            found.append("" if error.code < 500 else f"{host} answers {error.code}")
        except urllib.error.URLError as error:
            # The client has certificates of its own to try.
            refused = not isinstance(error.reason, ssl.SSLCertVerificationError)
            found.append(f"{host} does not answer ({error.reason})" if refused else "")
        except OSError as error:
            found.append(f"{host} does not answer ({type(error).__name__})")

    # A thread, because a timeout of a socket counts anew with every byte of a server that drips.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(PROBE_SECONDS + 1)
    return found[-1] or None


def _netrc_has(host: str) -> bool:
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
