"""Pushing an exported folder to the hub: what would leave this machine, what is taken out of it, and the upload."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from dpo.errors import NetworkError, Refused
from dpo.records import hub
from dpo.records.files import sealed
from dpo.records.redaction import redact_counted
from dpo.release.audit import audit
from dpo.release.certificate import CERTIFICATE, WEIGHTS

# Ours: rewritten with the secrets taken out. Any other text is what the model is loaded from and may not be altered.
REWRITTEN = ("README.md", CERTIFICATE)
LARGEST_TEXT = 100_000_000
ANSWERS = {
    401: "the hub does not know this token; set HF_TOKEN or run `hf auth login`",
    403: "this token may not write there; it needs the write right for that name",
    404: "the hub knows no such user or organization",
    413: "the hub refuses the size of the upload",
    429: "the hub asks for fewer requests; wait, then run the same command again",
}
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Upload:
    """One file as it would be uploaded: `text` is its content after redaction, None for weights, sent as they are."""

    path: Path
    name: str
    size: int
    redactions: int
    text: str | None


def to_upload(folder: Path) -> list[Upload]:
    """Every file of a folder that a push would send.

    Raises Refused when the folder does not pass `audit`, holds a file that is neither weights nor text, or has a
    secret in a file that cannot be rewritten.
    """
    if faults := [check for check in audit(folder) if check.failed]:
        raise Refused(f"{folder}: {faults[0].name}: {faults[0].detail}\nnot pushed; see dpo-train audit {folder}")
    uploads = []
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = str(path.relative_to(folder))
        if path.suffix in WEIGHTS:
            uploads.append(Upload(path, name, path.stat().st_size, 0, None))
            continue
        try:
            if path.stat().st_size > LARGEST_TEXT:
                raise ValueError("too large")
            raw = path.read_bytes().decode("utf-8")
        except ValueError:
            raise Refused(f"{path}: neither weights nor text, so it cannot be searched for secrets") from None
        text, count = redact_counted(raw, certain=name not in REWRITTEN)
        if count and name not in REWRITTEN:
            raise Refused(f"{path}: holds what looks like a secret in {count} places; remove it and export again")
        if count and name == CERTIFICATE:
            text = json.dumps(sealed(json.loads(text)), indent=2, ensure_ascii=False) + "\n"
        uploads.append(Upload(path, name, len(text.encode()), count, text))
    return uploads


def show_plan(folder: Path, repo: str) -> None:
    """Print what a push would send; sends nothing."""
    from dpo.pages.tables import to_table
    from dpo.records.terminal import terminal

    uploads = to_upload(folder)
    rows = [[u.name, f"{u.size:,}", "as it is" if u.text is None else str(u.redactions)] for u in uploads]
    rows.append([f"{len(uploads)} files", f"{sum(u.size for u in uploads):,}", ""])
    terminal().print(to_table(("file", "bytes", "redactions"), rows, f"dry run: what would be pushed to {repo}"))


def check_push(repo: str) -> None:
    """Raise a NetworkError, before any work, when there is no token to push with."""
    from huggingface_hub import get_token

    if hub.offline():
        raise NetworkError(f"push={repo}: HF_HUB_OFFLINE is set")
    if get_token() is None:
        raise NetworkError(f"push={repo}: no hub token; set HF_TOKEN or run `hf auth login` (dry_run=true needs none)")


def push(folder: Path, repo: str, private: bool) -> str:
    """Upload a folder to the hub in one commit; returns its address. Raises NetworkError."""
    from huggingface_hub import CommitOperationAdd, HfApi

    check_push(repo)
    uploads = to_upload(folder)
    api = HfApi()
    repo = _asked(repo, lambda: api.create_repo(repo, private=private, exist_ok=True)).repo_id
    operations = [
        CommitOperationAdd(u.name, str(u.path) if u.text is None else u.text.encode("utf-8")) for u in uploads
    ]
    print(f"pushing {len(uploads)} files, {sum(u.size for u in uploads) / 2**20:.0f} MB, to {repo}", flush=True)
    commit = _asked(repo, lambda: api.create_commit(repo, operations, commit_message="Add the exported model"))
    return str(commit.commit_url)


def _asked(repo: str, ask: Callable[[], Answer]) -> Answer:
    """Whatever the hub or the way to it answers becomes one line."""
    try:
        return ask()
    except Exception as error:
        if not hub.is_failure(error):
            raise
        status = getattr(getattr(error, "response", None), "status_code", 0)
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise NetworkError(f"push={repo}: {ANSWERS.get(status, first[:300])}") from None
