"""Datasets of the hub as local files: one bounded question to the server, then a download that is resumable."""

from __future__ import annotations

import json
import os
import queue
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dpo.config.datasets import HubDataset
from dpo.data.layout import choose
from dpo.errors import NetworkError
from dpo.records.files import write_json

# Seconds the server has to answer the first question. The clients' own default is five tries in 47 seconds.
ANSWER_SECONDS = 4.0


def fetch(dataset: HubDataset, cache: Path) -> tuple[dict[str, list[Path]], str]:
    """Files of each split and the commit they come from.

    Rows are read from the repository's own files by the readers that `dataset.path` uses, so the hub and a copy of
    it give the same rows under the same numbers. Without a network an earlier complete download serves. Raises
    NetworkError when there is neither.
    """
    receipt = cache / "hub" / f"{dataset.hub.replace('/', '--')}@{dataset.revision.replace('/', '--')}.json"
    try:
        commit, names = _ask(dataset)
    except NetworkError as error:
        return _earlier(dataset, receipt, error)
    files = choose(names, dataset)
    if "train" not in files:
        raise NetworkError(f"{dataset.hub}@{dataset.revision}: no training files of a known format in it")
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
        },
    )
    return {split: [folder / name for name in part] for split, part in files.items()}, commit


def _ask(dataset: HubDataset) -> tuple[str, list[str]]:
    """The commit a revision stands for, and the names of its files."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        raise NetworkError(
            f"{dataset.hub}: the hub is switched off by HF_HUB_OFFLINE\n"
            "give the rows with dataset.path=FILE_OR_FOLDER, or unset it"
        )
    try:
        info = _within_deadline(
            lambda: HfApi().dataset_info(dataset.hub, revision=dataset.revision, timeout=ANSWER_SECONDS)
        )
    except GatedRepoError:
        raise NetworkError(
            f"{dataset.hub}: gated; accept its terms at https://huggingface.co/datasets/{dataset.hub}\n"
            "then `hf auth login` or set HF_TOKEN, or give the rows with dataset.path=FOLDER"
        ) from None
    except RevisionNotFoundError:
        raise NetworkError(f"{dataset.hub}: no revision {dataset.revision}; see dataset.revision") from None
    except RepositoryNotFoundError:
        raise NetworkError(f"{dataset.hub}: no such dataset on the hub, or it is private (HF_TOKEN)") from None
    except Exception as error:  # noqa: BLE001 - its HTTP library, and so its errors, change with its version
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise NetworkError(
            f"{dataset.hub}: the hub did not answer ({reason:.120})\ngive the rows with dataset.path=FILE or FOLDER"
        ) from None
    return info.sha or dataset.revision, [item.rfilename for item in info.siblings or []]


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


def _download(dataset: HubDataset, commit: str, names: list[str]) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(dataset.hub, repo_type="dataset", revision=commit, allow_patterns=names))
    except Exception as error:  # noqa: BLE001 - whatever the client raises, the download did not succeed
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise NetworkError(f"{dataset.hub}: download failed ({reason:.120}); run the same command again") from None


def _earlier(dataset: HubDataset, receipt: Path, error: NetworkError) -> tuple[dict[str, list[Path]], str]:
    known = _read_receipt(receipt)
    if known is None:
        raise error
    folder = Path(known["folder"])
    files = choose(known["all"], dataset)
    wanted = {name for part in files.values() for name in part}
    if "train" not in files or not wanted <= set(known["files"]) or not all((folder / n).is_file() for n in wanted):
        raise error
    return {split: [folder / name for name in part] for split, part in files.items()}, known["commit"]


def _read_receipt(receipt: Path) -> dict[str, Any] | None:
    try:
        return json.loads(receipt.read_text())
    except (OSError, ValueError):
        return None
