"""Resolve `model.path` to a local folder of safetensors, its fingerprint and where it came from. No torch here."""

from __future__ import annotations

import errno
import functools
import hashlib
import json
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path

from dpo.caches.folder import cache_folder
from dpo.errors import ConfigError, NetworkError, Refused
from dpo.modeling.embedded import embedded_folder
from dpo.modeling.safetensors import read_header
from dpo.records.files import read_regular

HUB_SECONDS = 5.0
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
PATTERNS = ["*.json", "*.safetensors", "*.model", "*.jinja", "*.txt"]
SHA256 = re.compile(r"[0-9a-f]{64}")
# The coarsest clock of a file system in use (FAT's) ticks every two seconds.
SETTLED_SECONDS = 3.0
HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
HINTS = {
    "model.path": "use model=smollm2_135m (embedded, works offline) or model=custom model.path=FOLDER",
    "model.adapter": "use model.adapter=FOLDER with the adapter's files",
}


@dataclass(frozen=True)
class Weights:
    """A local folder of weights. `source` is what the user asked for, `revision` the resolved hub commit if any.

    `remote_code`: the user trusts the Python code that came with this very commit. `key`: which config key asked.
    """

    folder: Path
    source: str
    revision: str | None
    fingerprint: str
    remote_code: bool = False
    key: str = "model.path"

    @property
    def named(self) -> str:
        """How errors name them."""
        return f"{self.key}={self.source}" if self.key else self.source


def resolve(path: str, revision: str, remote_code: bool = False) -> Weights:
    """Find the weights: `embedded:NAME`, a folder, or a hub id. Errors take seconds, not a retry loop.

    Raises NetworkError (gated, missing, offline), Refused (no safetensors, code without a pin), ConfigError (not a
    model folder, or a damaged one).
    """
    if path.startswith("embedded:"):
        folder = embedded_folder(path.removeprefix("embedded:"))
        return Weights(folder, path, None, fingerprint(folder))
    if (local := local_folder(path)) is not None:
        if remote_code:
            raise Refused(f"model.trust_remote_code=true with model.path={path}: no commit pins the code of a folder")
        check_folder(local, path)
        return Weights(local, path, None, fingerprint(local))
    patterns = [*PATTERNS, "*.py"] if remote_code else PATTERNS
    folder, commit = from_hub(path, revision, "model.path", patterns)
    check_folder(folder, path, remote_code)
    return Weights(folder, path, commit, fingerprint(folder), remote_code)


def check_there(path: str, revision: str, key: str = "model.path") -> None:
    """Raise as `resolve` would for a folder that is none or not whole, or a hub id that cannot be had from here."""
    if path.startswith("embedded:"):
        return
    if (local := local_folder(path, key)) is None:
        find_on_hub(path, revision, key)
    elif key == "model.path":
        check_folder(local, path)


def local_folder(path: str, key: str = "model.path") -> Path | None:
    """The folder `path` names, or None when it is a hub id; raises ConfigError when it can only be a missing folder."""
    local = Path(path).expanduser()
    if local.is_dir():
        return local
    if local.is_file():
        raise ConfigError(f"{key}={path}: is a file; give the folder it lies in")
    if not HUB_ID.fullmatch(path):
        raise ConfigError(f"{key}={path}: no such folder, and not a hub id such as org/name")
    return None


def check_folder(folder: Path, source: str, remote_code: bool = False) -> None:
    """Raise unless `folder` is a whole transformers model in safetensors that runs no code of its own."""
    if not (folder / "config.json").is_file():
        raise ConfigError(f"model.path={source}: no config.json in it, so it is not a transformers model")
    if (folder / "adapter_config.json").exists():
        # transformers would put the adapter on the model while loading it, and nobody asked for that.
        raise ConfigError(
            f"model.path={source}: a model and an adapter (adapter_config.json) lie in it together\n"
            "keep them in folders of their own, and continue the adapter with model.adapter=FOLDER"
        )
    check_safetensors(folder, f"model.path={source}")
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise ConfigError(f"model.path={source}: its config.json cannot be read as JSON ({error})") from None
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise ConfigError(f"model.path={source}: its config.json names no model_type")
    if remote_code and "--" in json.dumps(config.get("auto_map")):
        raise Refused(f"model.path={source}: its code lies in another repository, which no revision pins")


def check_safetensors(folder: Path, what: str) -> None:
    """Raise unless `folder` holds whole safetensors files; `what` begins the error."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        pickled = sorted(p.name for p in folder.iterdir() if p.suffix in PICKLES)
        if pickled:
            raise Refused(f"{what}: only {pickled[0]} and no safetensors; pickles can run code when loaded")
        raise ConfigError(f"{what}: no *.safetensors in it")
    for path in files:
        try:
            read_header(path)
        except (ValueError, OSError) as error:
            raise ConfigError(f"{what}: {path.name}: {error}") from None
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            named = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (ValueError, KeyError, TypeError, AttributeError, OSError, RecursionError):
            raise ConfigError(f"{what}: its {index.name} cannot be read") from None
        missing = sorted(str(name) for name in named - {path.name for path in files})
        if missing:
            raise ConfigError(
                f"{what}: {len(missing)} of {len(named)} weight files are missing, the first {missing[0]}"
            )


def from_hub(repo: str, revision: str, key: str, patterns: list[str]) -> tuple[Path, str]:
    """Download (or find in the local hub cache) the files of a repository: (folder, resolved commit).

    `key` is the config key that named it, for errors. Raises NetworkError, ConfigError.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError

    cached, commit = find_on_hub(repo, revision, key)
    if cached is not None:
        return cached, commit
    try:
        return Path(snapshot_download(repo, revision=commit, allow_patterns=patterns)), commit
    except GatedRepoError:
        raise _gated(repo, key) from None
    except Exception as error:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise NetworkError(
            f"{key}={repo}: the download broke off ({reason:.120})\nthe same command continues it"
        ) from None


def _gated(repo: str, key: str) -> NetworkError:
    return NetworkError(
        f"{key}={repo}: gated; accept the licence at its hub page with your account\n"
        "then run `hf auth login` or set HF_TOKEN\n"
        "or take an open model: model=smollm2_135m"
    )


@functools.cache
def find_on_hub(repo: str, revision: str, key: str) -> tuple[Path | None, str]:
    """Ask the hub once what a revision is: (None, its commit), or (folder, commit) of the local cache without a hub.

    Takes seconds, whatever the hub does. Raises NetworkError, ConfigError.
    """
    from huggingface_hub import HfApi, get_hf_file_metadata, hf_hub_url, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    def cached(why: str) -> tuple[Path | None, str]:
        try:
            folder = Path(snapshot_download(repo, revision=revision, local_files_only=True))
        except (LocalEntryNotFoundError, FileNotFoundError):
            raise NetworkError(f"{key}={repo}: {why}, and it is not in the local hub cache\n" + HINTS[key]) from None
        return folder, folder.name

    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON"):
        return cached("HF_HUB_OFFLINE is set")
    try:
        info = HfApi().model_info(repo, revision=revision, timeout=HUB_SECONDS)
        files = [file.rfilename for file in info.siblings or [] if file.rfilename.endswith((".json", ".safetensors"))]
        if info.gated and files:
            # The hub tells anyone about a gated repository; its files show whether this account may have them.
            get_hf_file_metadata(hf_hub_url(repo, files[0], revision=info.sha), timeout=HUB_SECONDS)
    except GatedRepoError:
        raise _gated(repo, key) from None
    except RevisionNotFoundError:
        raise NetworkError(f"{key}={repo}: the hub has no revision {revision}") from None
    except RepositoryNotFoundError:
        raise NetworkError(f"{key}={repo}: not a folder here, and the hub has no such model (or hides it)") from None
    except HFValidationError:
        raise ConfigError(f"{key}={repo}: neither a folder nor a hub id such as org/name") from None
    except (HfHubHTTPError, OSError) as error:
        return cached(f"the hub did not answer ({type(error).__name__})")
    except Exception as error:
        # The client library's own exceptions, whichever it is in this version of the hub package.
        if not type(error).__module__.startswith(("httpx", "requests", "httpcore")):
            raise
        return cached(f"the hub did not answer ({type(error).__name__})")
    return None, str(info.sha)


def check_unchanged(weights: Weights) -> None:
    """Raise ConfigError when what has just been loaded is not what the fingerprint was made of any more."""
    if (now := fingerprint(weights.folder)) != weights.fingerprint:
        raise ConfigError(
            f"{weights.named}: {weights.folder} was changed while it was read: was {weights.fingerprint}, is {now}"
        )


def fingerprint(folder: Path) -> str:
    """SHA-256 over the contents of weights, config and generation settings, 16 hex digits.

    Where weights lie in several files, also over the index, which says in which of them each tensor is looked for.
    """
    total = hashlib.sha256()
    settings = [
        folder / "config.json",
        *folder.glob("generation_config.json"),
        *folder.glob("*.safetensors.index.json"),
    ]
    for path in sorted([*folder.glob("*.safetensors"), *settings]):
        total.update(f"{path.name}:{file_hash(path)}\n".encode())
    return total.hexdigest()[:16]


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes, remembered for as long as the file is untouched.

    Touched is what the kernel says: the time an inode changed cannot be set back, while size and modification time
    survive `touch -r` and `cp -p`. Just after a change another one would bear the same time, so nothing is remembered.
    """
    stat = path.stat()
    facts = (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
    key = hashlib.sha256(repr(facts).encode()).hexdigest()
    memo = cache_folder("hashes") / f"{key}.json"
    try:
        known = str(json.loads(read_regular(memo))["sha256"])
        if SHA256.fullmatch(known):
            return known
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        pass
    with path.open("rb") as file:
        known = hashlib.file_digest(file, "sha256").hexdigest()
        after = os.fstat(file.fileno())
    same = (after.st_ino, after.st_size, after.st_ctime_ns) == (stat.st_ino, stat.st_size, stat.st_ctime_ns)
    if same and time.time() - stat.st_ctime > SETTLED_SECONDS:
        aside = memo.with_name(f"{memo.name}.{os.getpid()}")
        aside.write_text(json.dumps({"sha256": known, "path": str(path)}))
        aside.replace(memo)
    return known
