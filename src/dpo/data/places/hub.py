"""Datasets of the hub as local files: one bounded question to the server, then a download that is resumable."""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpo.config.datasets import Hub, HubDataset
from dpo.data.places.layout import choose
from dpo.data.places.repository import Card, licence_of, read_card
from dpo.errors import NetworkError
from dpo.records.files import write_json

# Seconds the server has to answer the first question. The clients' own default is five tries in 47 seconds.
ANSWER_SECONDS = 4.0
# What is kept of a card.
CARD = ("license", "license_name", "configs")
Repository = HubDataset | Hub


@dataclass(frozen=True)
class Fetched:
    """Files of each split, the commit they come from, and the licence its card names."""

    files: dict[str, list[Path]]
    commit: str
    licence: str | None


def fetch(dataset: Repository, cache: Path) -> Fetched:
    """The files of a dataset on the hub.

    Rows are read from the repository's own files by the readers that `dataset.path` uses, so the hub and a copy of
    it give the same rows under the same numbers. Without a network an earlier complete download serves. Raises
    NetworkError when there is neither.
    """
    receipt = cache / "hub" / f"{dataset.repository.replace('/', '--')}@{dataset.revision.replace('/', '--')}.json"
    try:
        commit, names, card = _ask(dataset)
    except NetworkError as error:
        return _earlier(dataset, receipt, error)
    files = choose(names, dataset, card)
    if not files.get("train"):
        raise NetworkError(f"{dataset.repository}@{dataset.revision}: no training files of a known format in it")
    folder = _download(dataset, commit, sorted(name for part in files.values() for name in part))
    known = _read_receipt(receipt)
    held = set(known["files"]) if known is not None and known["commit"] == commit else set()
    receipt.parent.mkdir(parents=True, exist_ok=True)
    write_json(
        receipt,
        {
            "commit": commit,
            "folder": str(folder),
            "all": names,
            "files": sorted(held | {n for part in files.values() for n in part}),
            "card": card,
        },
    )
    return Fetched(_within(folder, files), commit, licence_of(card))


def _within(folder: Path, files: dict[str, list[str]]) -> dict[str, list[Path]]:
    return {split: [folder / name for name in part] for split, part in files.items()}


def _ask(dataset: Repository) -> tuple[str, list[str], Card]:
    """The commit a revision stands for, the names of its files, and its card."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        raise NetworkError(
            f"{dataset.repository}: the hub is switched off by HF_HUB_OFFLINE\n"
            "give the rows with dataset.path=FILE_OR_FOLDER, or unset it"
        )
    try:
        info = _within_deadline(
            lambda: HfApi().dataset_info(dataset.repository, revision=dataset.revision, timeout=ANSWER_SECONDS)
        )
    except GatedRepoError:
        raise NetworkError(
            f"{dataset.repository}: gated; accept its terms at https://huggingface.co/datasets/{dataset.repository}\n"
            "then `hf auth login` or set HF_TOKEN, or give the rows with dataset.path=FOLDER"
        ) from None
    except RevisionNotFoundError:
        raise NetworkError(f"{dataset.repository}: no revision {dataset.revision}; see dataset.revision") from None
    except RepositoryNotFoundError:
        raise NetworkError(f"{dataset.repository}: no such dataset on the hub, or it is private (HF_TOKEN)") from None
    except Exception as error:  # noqa: BLE001 - its HTTP library, and so its errors, change with its version
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise NetworkError(
            f"{dataset.repository}: the hub did not answer ({reason:.120})\n"
            "give the rows with dataset.path=FILE or FOLDER"
        ) from None
    said = info.card_data.to_dict() if info.card_data is not None else {}
    card = {key: said[key] for key in CARD if said.get(key) is not None}
    return info.sha or dataset.revision, [item.rfilename for item in info.siblings or []], card


def _within_deadline(question: Callable[[], Any]) -> Any:
    """Its answer, or TimeoutError: socket timeouts do not cover a name server that never answers."""
    answers: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()

    def ask() -> None:
        try:
            answers.put((question(), None))
        except BaseException as error:  # noqa: BLE001 - handed to the asking thread
            answers.put((None, error))

    threading.Thread(target=ask, daemon=True).start()
    try:
        answer, error = answers.get(timeout=2 * ANSWER_SECONDS)
    except queue.Empty:
        raise TimeoutError(f"no answer within {2 * ANSWER_SECONDS:g} s") from None
    if error is not None:
        raise error
    return answer


def _download(dataset: Repository, commit: str, names: list[str]) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(dataset.repository, repo_type="dataset", revision=commit, allow_patterns=names))
    except Exception as error:  # noqa: BLE001 - whatever the client raises, the download did not succeed
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise NetworkError(
            f"{dataset.repository}: download failed ({reason:.120}); run the same command again"
        ) from None


def _earlier(dataset: Repository, receipt: Path, error: NetworkError) -> Fetched:
    """What an earlier download left; of any dataset also what lies in the hub client's own cache, told as that."""
    known = _read_receipt(receipt)
    if known is None:
        return _cached(dataset, error)
    folder, card = Path(known["folder"]), known.get("card") or {}
    files = choose(known["all"], dataset, card)
    wanted = {name for part in files.values() for name in part}
    if "train" not in files or not wanted <= set(known["files"]) or not all((folder / n).is_file() for n in wanted):
        raise error
    return Fetched(_within(folder, files), known["commit"], licence_of(card))


def _cached(dataset: Repository, error: NetworkError) -> Fetched:
    from huggingface_hub import snapshot_download

    try:
        folder = Path(
            snapshot_download(dataset.repository, repo_type="dataset", revision=dataset.revision, local_files_only=True)
        )
    except Exception:  # noqa: BLE001 - nothing there, in whatever way the client says it
        raise error from None
    card = read_card(folder / "README.md")
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    files = choose(names, dataset, card)
    if not files.get("train"):
        raise error
    print(
        f"{dataset.repository}: no hub to ask; {len(names)} files of it lie in the hub client's cache, whether that is "
        "all nobody can say",
        file=sys.stderr,
    )
    return Fetched(_within(folder, files), folder.name, licence_of(card))


def _read_receipt(receipt: Path) -> dict[str, Any] | None:
    try:
        return json.loads(receipt.read_text())
    except (OSError, ValueError):
        return None
