"""A run's recorded facts against what lies on disk now. Whoever reads a run asks here; nothing recorded is believed.

run.json records fingerprints of content: of the base, the starting adapter, the tokenizer with its template, the data,
and of each file of the final weights. No torch here.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dpo.config.parse import plain
from dpo.config.schema import Config
from dpo.errors import CheckpointError
from dpo.modeling.adapter import CONFIG, TENSORS, adapter_fingerprint
from dpo.modeling.weights import Weights, file_hash
from dpo.records.run import check_text, read_record

FINAL = "adapter"
# Written by people and by later versions; says nothing that a model is made of.
UNCOUNTED = ("README.md",)


def final_files(folder: Path) -> dict[str, str]:
    """SHA-256 of each file of a run's final weights, by name: tensors, settings, tokenizer."""
    return {p.name: file_hash(p) for p in sorted(folder.iterdir()) if p.is_file() and p.name not in UNCOUNTED}


def check_final(run: Path) -> None:
    """Raise CheckpointError unless every file of the final weights is the one that training wrote."""
    recorded, found = _of(run, read_record(run), "final"), final_files(run / FINAL)
    if not isinstance(recorded, Mapping):
        raise CheckpointError(f"{run}/run.json: final is damaged")
    for name in sorted({*recorded, *found}):
        if recorded.get(name) != found.get(name):
            was, now = (str(files.get(name, "not there"))[:16] for files in (recorded, found))
            raise CheckpointError(f"{run / FINAL / name}: was {was} when training ended, is {now} now")


def run_of(folder: Path) -> Path | None:
    """The finished run whose final weights lie in `folder`; None for a folder of its own."""
    run = folder.resolve().parent
    return run if folder.resolve().name == FINAL and (run / "run.json").is_file() else None


def check_base(run: Path, weights: Weights) -> Weights:
    """`weights`, which are those that the run started from; raises CheckpointError when they are others."""
    check_print(run, "base", weights.fingerprint, f"model.path={weights.source} ({weights.folder})")
    return weights


def check_start(run: Path, folder: Path) -> None:
    """Raise CheckpointError unless `folder`, the run's copy, is the adapter it started from."""
    if missing := [name for name in (CONFIG, TENSORS) if not (folder / name).is_file()]:
        raise CheckpointError(f"{folder / missing[0]}: missing; it is the adapter that this run started from")
    check_print(run, "adapter", adapter_fingerprint(folder), str(folder))


def check_print(run: Path, fact: str, now: str, where: str) -> None:
    """Raise CheckpointError unless run.json records the fingerprint `now` of `fact`; `where` is what it was made of."""
    prints = read_record(run).get("fingerprints")
    was = _of(run, prints if isinstance(prints, Mapping) else {}, fact)
    if was != now:
        raise CheckpointError(
            f"{run}: its {fact} was {was} when it was trained; {where} is {now}\n"
            f"put back what it was trained with: what was learned means nothing with another {fact}"
        )


def check_config(run: Path, config: Config) -> None:
    """Raise CheckpointError when config.yaml is not as training wrote it; a key that decides the model is named."""
    record = read_record(run)
    recorded = _of(run, record, "built")
    if isinstance(recorded, Mapping) and (now := built(config)) != recorded:
        key = next(key for key in now if now[key] != recorded.get(key))
        raise CheckpointError(
            f"{run}/config.yaml: {key}={now[key]}, which was {recorded.get(key)} when the run was trained"
        )
    check_text(run / "config.yaml", record)


def built(config: Config) -> dict[str, Any]:
    """What of the config decides which model a reader builds from a run."""
    data = plain(config)
    model = {f"model.{key}": data["model"][key] for key in ("path", "adapter", "trust_remote_code")}
    return {**model, "lora.quantization": data["lora"].get("quantization"), "dpo.beta": data["dpo"]["beta"]}


def _of(run: Path, record: Mapping[str, Any], fact: str) -> Any:
    if record.get(fact) is None:
        raise CheckpointError(
            f"{run}/run.json: does not say what its {fact} was, so that cannot be checked; "
            "it was begun by an earlier version, or edited"
        )
    return record[fact]
