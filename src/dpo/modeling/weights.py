"""Resolve `model.path` to a local folder of safetensors, its fingerprint and where it came from."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

from dpo.errors import ConfigError, NetworkError, Refused
from dpo.modeling.cache import cache_folder
from dpo.modeling.embedded import embedded_folder

HUB_SECONDS = 5.0
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")


@dataclass(frozen=True)
class Weights:
    """A local folder of weights. `source` is what the user asked for, `revision` the resolved hub commit if any."""

    folder: Path
    source: str
    revision: str | None
    fingerprint: str


def resolve(path: str, revision: str) -> Weights:
    """Find the weights: `embedded:NAME`, a folder, or a hub id. Errors take seconds, not a retry loop.

    Raises NetworkError (gated, missing, offline), Refused (no safetensors), ConfigError (not a model folder).
    """
    if path.startswith("embedded:"):
        folder = embedded_folder(path.removeprefix("embedded:"))
        return Weights(folder, path, None, fingerprint(folder))
    local = Path(path).expanduser()
    if local.is_dir():
        _check_folder(local, path)
        return Weights(local, path, None, fingerprint(local))
    if path.startswith((".", "/", "~")) or path.count("/") > 1:
        raise ConfigError(f"model.path={path}: no such folder")
    folder, commit = _from_hub(path, revision)
    _check_folder(folder, path)
    return Weights(folder, path, commit, fingerprint(folder))


def _check_folder(folder: Path, source: str) -> None:
    if not (folder / "config.json").is_file():
        raise ConfigError(f"model.path={source}: no config.json in it, so it is not a transformers model")
    if not any(folder.glob("*.safetensors")):
        pickled = sorted(p.name for p in folder.iterdir() if p.suffix in PICKLES)
        if pickled:
            raise Refused(
                f"model.path={source}: only {pickled[0]} and no safetensors; pickles can run code when loaded"
            )
        raise ConfigError(f"model.path={source}: no *.safetensors in it")


def _from_hub(repo: str, revision: str) -> tuple[Path, str]:
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    def cached(why: str) -> tuple[Path, str]:
        try:
            folder = Path(snapshot_download(repo, revision=revision, local_files_only=True))
        except (LocalEntryNotFoundError, FileNotFoundError):
            raise NetworkError(
                f"model.path={repo}: {why}, and it is not in the local hub cache\n"
                "use model=smollm2_135m (embedded, works offline) or model=custom model.path=FOLDER"
            ) from None
        return folder, folder.name

    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON"):
        return cached("HF_HUB_OFFLINE is set")
    try:
        info = HfApi().model_info(repo, revision=revision, timeout=HUB_SECONDS)
    except GatedRepoError:
        raise NetworkError(
            f"model.path={repo}: gated; accept the licence at its hub page with your account\n"
            "then run `hf auth login` or set HF_TOKEN\n"
            "or take an open model: model=smollm2_135m"
        ) from None
    except RevisionNotFoundError:
        raise NetworkError(f"model.path={repo}: the hub has no revision {revision}") from None
    except RepositoryNotFoundError:
        raise NetworkError(
            f"model.path={repo}: not a folder here, and the hub has no such model (or hides it)"
        ) from None
    except HFValidationError:
        raise ConfigError(f"model.path={repo}: neither a folder nor a hub id such as org/name") from None
    except (HfHubHTTPError, OSError) as error:
        return cached(f"the hub did not answer ({type(error).__name__})")
    except Exception as error:
        # The client library's own exceptions, whichever it is in this version of the hub package.
        if not type(error).__module__.startswith(("httpx", "requests", "httpcore")):
            raise
        return cached(f"the hub did not answer ({type(error).__name__})")
    folder = snapshot_download(
        repo, revision=info.sha, allow_patterns=["*.json", "*.safetensors", "*.model", "*.jinja", "*.txt"]
    )
    return Path(folder), str(info.sha)


def fingerprint(folder: Path) -> str:
    """SHA-256 over config and weights, 16 hex digits. File hashes are remembered by path, size and time."""
    total = hashlib.sha256()
    for path in sorted([*folder.glob("*.safetensors"), folder / "config.json"]):
        total.update(f"{path.name}:{_file_hash(path)}\n".encode())
    return total.hexdigest()[:16]


def _file_hash(path: Path) -> str:
    real = path.resolve()
    stat = real.stat()
    key = hashlib.sha256(f"{real}:{stat.st_size}:{stat.st_mtime_ns}".encode()).hexdigest()
    memo = cache_folder("hashes") / f"{key}.json"
    try:
        known = json.loads(memo.read_text())["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        with real.open("rb") as file:
            known = hashlib.file_digest(file, "sha256").hexdigest()
        aside = memo.with_name(f"{memo.name}.{os.getpid()}")
        aside.write_text(json.dumps({"sha256": known, "path": str(real)}))
        aside.replace(memo)
    assert isinstance(known, str)
    return known
