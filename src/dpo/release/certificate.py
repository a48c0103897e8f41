"""An export's certificate.json: the hashes it vouches for, and its figures as rows of words."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from dpo.errors import CheckpointError
from dpo.pages.tables import number, share

Row = dict[str, Any]
CERTIFICATE = "certificate.json"
WEIGHTS = (".safetensors", ".gguf")
MODEL_COLUMNS = ("held-out pairs", "implicit-reward accuracy", "reward margin", "chosen likelier")
DIFFERENCE_COLUMNS = ("log-probs a sequence, nats", "median", "5% to 95%", "largest", "rms", "rms / effect")


def weight_files(folder: Path) -> dict[str, Row]:
    """Size and SHA-256 of every weights file of a folder, by name."""
    found = {}
    for path in sorted(p for p in folder.iterdir() if p.suffix in WEIGHTS):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        found[path.name] = {"size": path.stat().st_size, "sha256": digest}
    return found


def check_certified(folder: Path, certificate: Row) -> None:
    """Raise CheckpointError unless the weights of `folder` are the very files that its certificate vouches for."""
    known, found = certificate.get("files"), weight_files(folder)
    known = known if isinstance(known, dict) else {}
    for name in sorted({*known, *found}):
        if known.get(name) != found.get(name):
            raise CheckpointError(f"{folder / name}: not the file that was certified; again=true exports it anew")


def model_rows(certificate: Row) -> list[list[str]]:
    """One row a model: accuracy, margin and policy accuracy with intervals."""
    return [
        [m["label"], share(m["accuracy"]), number(m["margin"], 3), share(m["policy_accuracy"])]
        for m in certificate["models"].values()
    ]


def difference_rows(certificate: Row) -> list[list[str]]:
    """One row a difference between two models, what training itself changed first."""
    effect = {**certificate["effect"], "share_of_effect": 1.0}
    rows = []
    for found in (effect, *certificate["differences"].values()):
        q = found["quantiles"]
        rows.append(
            [
                found["label"],
                f"{q['0.5']:+.3f}",
                f"{q['0.05']:+.3f} to {q['0.95']:+.3f}",
                f"{found['largest']:.3f}",
                f"{found['rms']:.3f}",
                f"{found['share_of_effect']:.3f}",
            ]
        )
    return rows


def excess(certificate: Row) -> str:
    """How far the export is from what was trained, against its bounds."""
    merge = certificate["differences"].get("merge")
    if merge is not None and merge["share_of_effect"] > certificate["merge_bound"]:
        return (
            f"the merge itself is off by {merge['share_of_effect']:.3f} of what training changed; "
            f"it may be {certificate['merge_bound']:g}"
        )
    return (
        f"the export differs by {certificate['measured']:.3f} of what training changed; "
        f"the bound is {certificate['bound']:g}"
    )


def verdict(certificate: Row) -> str:
    """One sentence: whether the export is what was trained."""
    if certificate["within_bound"]:
        return f"certified: {excess(certificate)}"
    return f"NOT within its bound, forced: {excess(certificate)}"
