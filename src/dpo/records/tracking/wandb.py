"""Weights & Biases, online only where a key is found and its server answers, else offline into the run directory."""

from __future__ import annotations

import netrc
import os
import shlex
import shutil
import ssl
import sys
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
from dpo.records.tracking.tracker import Evaluated

PROBE_SECONDS = 3.0
INIT_SECONDS = 8.0
FINISH_SECONDS = 5.0
UPLOAD_SECONDS = 300
KEEPS = ("end", "checkpoint", "true", "1")  # values of WANDB_LOG_MODEL, which transformers heeds too


class WandbTracker:
    """One W&B run. What a network loses stays in the run directory, for `wandb sync`."""

    def __init__(self, settings: Wandb, folder: Path, config: Mapping[str, Any], who: Identity) -> None:
        # Its own crash reports and telemetry: a stalled server would hold the end of the process for 20 s with them.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        # Copies of what is to be uploaded; its default is a folder of the user's that nobody empties.
        os.environ.setdefault("WANDB_DATA_DIR", str(folder / "wandb"))
        import wandb

        def start(online: bool) -> Any:
            return wandb.init(
                project=settings.project,
                entity=settings.entity,
                # What is None here, the client takes from the environment (WANDB_RUN_GROUP, WANDB_TAGS, ...).
                group=who.group,
                job_type=None if who.known else os.environ.get("WANDB_JOB_TYPE", "train"),
                # Come back to, it keeps its name, which may have been given to it there.
                name=None if who.known else _name(who),
                id=_id(who),
                resume="allow",
                dir=str(folder),
                mode="online" if online else "offline",
                # Of this run only: TRL's and the Trainer's own hundreds stay out.
                config=dict(config),
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
                    # The code that runs, where that is a checkout; else whatever holds the current folder.
                    git_root=str(Path(__file__).parent) if who.git else None,
                ),
            )

        mode = _mode(settings.mode)
        why = why_offline(mode)
        if why is None:
            try:
                self._run = start(online=True)
            except Exception as error:  # noqa: BLE001 - whatever kept it from going online, offline works
                why = f"{type(error).__name__}: {str(error).splitlines()[0]}"
                # Its service still holds the run's id, and would go on asking the server until the process ends.
                wandb.teardown()
        self._online = why is None
        self._adapter = settings.adapter or os.environ.get("WANDB_LOG_MODEL", "").lower() in KEEPS
        if why is None:
            self.where = f"wandb, online: {self._run.url}"
        elif mode is WandbMode.online:
            raise NetworkError(f"tracking.mode=online: {why}\ntracking.mode=auto falls back to offline")
        else:
            self._run = start(online=False)
            self.where = f"wandb, offline: {why} (upload with: {sync_command(folder)})"
        self.known = {"backend": "wandb", "name": self._run.name or who.name, "id": self._run.id}
        if self._online:
            self.known["url"] = self._run.url

    def log(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        """See Tracker."""
        self._run.log({f"{kind}/{name}": value for name, value in values.items()} | {"step": step}, step=step)

    def show(self, found: Evaluated) -> None:
        """See Tracker. The figures are in the run's summary, the answers a table, the page an artifact."""
        import wandb

        # Behind the last step: W&B takes no row of a step that it has.
        step = max(int(self._run.step), found.step + 1)
        figures = {f"{found.key}/{name}": value for name, value in found.figures.items()}
        # Uploaded later, this summary takes the place of the one that training left.
        self._run.summary.update(dict(found.last))
        # Files last: they need more of the server.
        self._run.log({**figures, "step": found.step}, step=step)
        table = wandb.Table(columns=list(found.columns), data=[list(row) for row in found.samples])
        self._run.log({f"{found.key}/samples": table}, step=step)
        if found.report is not None:
            self._artifact("report", found.key, found.report)

    def keep(self, adapter: Path) -> None:
        """See Tracker."""
        if self._adapter:
            kept = self._artifact("model", "adapter", adapter)
            if self._online:
                kept.wait(timeout=UPLOAD_SECONDS)

    def _artifact(self, kind: str, name: str, path: Path) -> Any:
        import wandb

        made = wandb.Artifact(f"{name.replace('/', '-')}-{self._run.id}", type=kind)
        if path.is_dir():
            made.add_dir(str(path), skip_cache=True)
        else:
            made.add_file(str(path), skip_cache=True)
        return self._run.log_artifact(made)

    def finish(self, exit_code: int) -> None:
        """See Tracker."""
        self._run.finish(exit_code=exit_code)


def sync_command(folder: Path) -> str:
    """The command that uploads what lies in a run directory, as it works from the current folder."""
    place = folder.absolute() / "wandb"
    if place.is_relative_to(Path.cwd()):
        place = place.relative_to(Path.cwd())
    client = ["wandb"] if shutil.which("wandb") else [sys.executable, "-m", "wandb"]
    return shlex.join([*client, "sync", str(place)])


def _name(who: Identity) -> str:
    """WANDB_NAME; the jobs of a sweep, which share it, stay apart."""
    asked = os.environ.get("WANDB_NAME")
    return f"{asked} {who.name}" if asked and who.group else asked or who.name


def _id(who: Identity) -> str:
    """An agent of W&B Sweeps says under which id it expects the run; jobs of one sweep of ours would share it."""
    asked = os.environ.get("WANDB_RUN_ID")
    return who.id if not asked or who.known or who.group else asked


def _mode(mode: WandbMode) -> WandbMode:
    """What was asked for; where nothing was, what WANDB_MODE says."""
    asked = os.environ.get("WANDB_MODE")
    if mode is not WandbMode.auto or not asked:
        return mode
    return WandbMode.offline if asked in ("offline", "dryrun") else WandbMode.online


def why_offline(mode: WandbMode) -> str | None:
    """Why a run cannot go online, decided without a prompt and within seconds; None when it can."""
    if mode is WandbMode.offline:
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
