"""An adapter to start from: found, checked against `lora`, and put into a fresh PEFT model as plain tensors.

Its adapter_config.json is read as JSON and compared, never handed to PEFT: the model is built from our own config.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpo.config.lora import Lora
from dpo.errors import CheckpointError, ConfigError, DpoError
from dpo.modeling.weights import check_safetensors, file_hash, from_hub, local_folder

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
MADE_ON = "base.json"
"""Beside the adapter of a run: the fingerprint of its base, wherever the adapter goes."""
LARGEST_RANK = 65536
# What an adapter may say; anything else only by leaving it empty: it would be another function than plain LoRA.
PLAIN = frozenset(
    """
    r lora_alpha lora_dropout use_rslora use_dora target_modules exclude_modules init_lora_weights bias fan_in_fan_out
    peft_type task_type peft_version base_model_name_or_path revision auto_mapping inference_mode megatron_core
    runtime_config eva_config ensure_weight_tying qalora_group_size rank_pattern alpha_pattern target_parameters
    """.split()
)
# What PEFT derives itself from our config for experts that lie in one tensor.
DERIVED = ("rank_pattern", "alpha_pattern", "target_parameters")
# Ways to begin that leave the base as it is; PiSSA, OLoRA, LoftQ and others take their start out of it.
HARMLESS = (None, True, False, "gaussian", "eva")
SAME = {"rank": "r", "alpha": "lora_alpha", "rslora": "use_rslora", "dora": "use_dora"}


@dataclass(frozen=True)
class Adapter:
    """A local folder with a LoRA adapter. `source` is what the user asked for, `revision` its hub commit if any."""

    folder: Path
    source: str
    revision: str | None
    fingerprint: str
    settings: dict[str, Any]


def resolve_adapter(path: str, revision: str) -> Adapter:
    """Find the adapter: a folder or a hub id. Raises ConfigError, Refused (pickles) or NetworkError."""
    what = f"model.adapter={path}"
    folder, commit = local_folder(path, "model.adapter"), None
    if folder is None:
        folder, commit = from_hub(path, revision, "model.adapter", ["*.json", "*.safetensors"])
    if not (folder / CONFIG).is_file():
        inside = f"; try {path}/adapter" if (folder / "adapter" / CONFIG).is_file() else ""
        raise ConfigError(f"{what}: no {CONFIG} in it, so it is not a PEFT adapter{inside}")
    settings = read_settings(folder, what)
    check_safetensors(folder, what)
    if not (folder / TENSORS).is_file():
        raise ConfigError(f"{what}: no {TENSORS} in it")
    return Adapter(folder, path, commit, adapter_fingerprint(folder), settings)


def write_base(folder: Path, base: str) -> None:
    """Put down beside an adapter which base, by its fingerprint, it was trained on."""
    (folder / MADE_ON).write_text(json.dumps({"fingerprint": base}), encoding="utf-8")


def check_made_on(adapter: Adapter, base: str) -> None:
    """Raise CheckpointError where a run's adapter that left its run meets another base than it was trained on; others'
    adapters say nothing of theirs."""
    path = adapter.folder / MADE_ON
    if not path.is_file():
        return
    try:
        made_on = json.loads(path.read_text(encoding="utf-8"))["fingerprint"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise CheckpointError(f"{path}: damaged; it says which base the adapter was trained on") from None
    if made_on != base:
        raise CheckpointError(
            f"model.adapter={adapter.source}: it was trained on the base {made_on}, model.path is {base}\n"
            "what was learned means nothing on another base; take the one it was trained on"
        )


def adapter_fingerprint(folder: Path) -> str:
    """SHA-256 over the contents of an adapter's settings and tensors, 16 hex digits."""
    return hashlib.sha256(f"{file_hash(folder / CONFIG)}:{file_hash(folder / TENSORS)}".encode()).hexdigest()[:16]


def read_settings(folder: Path, what: str, error: type[DpoError] = ConfigError) -> dict[str, Any]:
    """adapter_config.json, what it says of a LoRA being of the right kind; raises `error`."""
    try:
        settings = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as fault:
        reason = str(fault).splitlines()[0] if str(fault) else type(fault).__name__
        raise error(f"{what}: its {CONFIG} cannot be read as JSON ({reason:.120})") from None
    if not isinstance(settings, dict):
        raise error(f"{what}: its {CONFIG} must hold a mapping")
    if settings.get("peft_type") != "LORA":
        return settings  # named where it matters, by `check_agrees` or `put_on`
    targets = settings.get("target_modules")
    holds = {
        "r": _is_whole(settings.get("r")) and 1 <= settings["r"] <= LARGEST_RANK,
        "lora_alpha": _is_number(settings.get("lora_alpha")) and 0 < settings["lora_alpha"] < math.inf,
        "use_rslora": isinstance(settings.get("use_rslora", False), bool),
        "use_dora": isinstance(settings.get("use_dora", False), bool),
        "target_modules": targets is None
        or isinstance(targets, str)
        or (isinstance(targets, list) and all(isinstance(name, str) for name in targets)),
    }
    for name, right in holds.items():
        if not right:
            raise error(f"{what}: its {CONFIG} says {name}={settings.get(name)!s:.60}, which no LoRA adapter has")
    return settings


def _is_whole(value: Any) -> bool:
    return type(value) is int


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


def check_agrees(adapter: Adapter, lora: Lora, widen: bool = False) -> None:
    """Raise ConfigError where `lora` says something else than the adapter, naming what to set; dropout is free.

    With `widen` its rank is a lower bound and its scaling is free.
    """
    settings, what = adapter.settings, f"model.adapter={adapter.source}"
    kind = settings.get("peft_type")
    if kind != "LORA":
        raise ConfigError(f"{what}: its type is {kind}; only LORA adapters can be continued")
    init = settings.get("init_lora_weights")
    if (init.lower() if isinstance(init, str) else init) not in HARMLESS:
        raise ConfigError(
            f"{what}: it began as {init}, which changes the base weights it stands on; on the plain base it is another "
            "model\nconvert it where it was made: save_pretrained(..., path_initial_model_for_weight_conversion=...)"
        )
    beyond = sorted(name for name, value in settings.items() if value and name not in PLAIN)
    if settings.get("bias", "none") != "none":
        beyond.append("bias")
    if beyond:
        raise ConfigError(f"{what}: it sets {', '.join(beyond)}; only plain LoRA adapters can be continued")
    wanted = {name: (getattr(lora, name), settings.get(theirs, False)) for name, theirs in SAME.items()}
    wrong = {name: theirs for name, (ours, theirs) in wanted.items() if ours != theirs}
    if widen and lora.rank >= settings["r"]:
        wrong = {name: value for name, value in wrong.items() if name == "dora"}
    targets = _targets(adapter)
    named = isinstance(lora.target_modules, list) and not settings.get("target_parameters")
    if named and targets is not None and sorted({*lora.target_modules}) != targets:
        wrong["target_modules"] = f"[{','.join(targets)}]"
    if wrong:
        fix = " ".join(f"lora.{name}={str(value).lower()}" for name, value in wrong.items())
        ours = ", ".join(f"lora.{name}={getattr(lora, name)}" for name in wrong)
        raise ConfigError(f"{what} contradicts {ours}; the adapter is {fix}")


def _scaling(alpha: float, rank: int, rslora: bool) -> float:
    return float(alpha / math.sqrt(rank) if rslora else alpha / rank)


def _widened(name: str, tensor: Any, fresh: Any, ratio: float) -> Any:
    """`tensor` in the shape of `fresh`: A keeps its rows before fresh ones, B, times `ratio`, before columns of 0."""
    if "lora_A" in name and tensor.shape[0] <= fresh.shape[0] and tensor.shape[1:] == fresh.shape[1:]:
        wide = fresh.clone()
        wide[: tensor.shape[0]] = tensor
        return wide
    if "lora_B" in name and tensor.shape[1] <= fresh.shape[1] and tensor.shape[0] == fresh.shape[0]:
        wide = fresh.new_zeros(fresh.shape)
        wide[:, : tensor.shape[1]] = tensor * ratio
        return wide
    return tensor


def _targets(adapter: Adapter) -> list[str] | None:
    """Names of the adapted modules without their paths, which PEFT writes out for all-linear; None for a pattern."""
    found = adapter.settings.get("target_modules")
    return sorted({str(name).rpartition(".")[2] for name in found}) if isinstance(found, list) else None


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, (list, set)) and value else value or None


def load_into(model: Any, adapter: Adapter, lora: Lora) -> None:
    """Copy the adapter's tensors into the fresh adapter of a PeftModel; raises ConfigError when they do not fit it.

    Where `lora` has another rank or scaling (see `check_agrees`), the update s B A stays the same matrix.
    """
    from peft import get_peft_model_state_dict, set_peft_model_state_dict
    from safetensors.torch import load_file

    tensors = load_file(adapter.folder / TENSORS)
    if adapter_fingerprint(adapter.folder) != adapter.fingerprint:
        raise ConfigError(f"model.adapter={adapter.source}: {adapter.folder} was changed while it was read")
    expected = get_peft_model_state_dict(model, save_embedding_layers=False)
    what = f"model.adapter={adapter.source}"
    for name in DERIVED:
        theirs, ours = (
            _plain(value) for value in (adapter.settings.get(name), getattr(model.peft_config["default"], name))
        )
        if theirs != ours:
            raise ConfigError(f"{what}: it sets {name}={theirs}, a fresh adapter of this base has {ours}")
    odd = sorted(tensors.keys() ^ expected.keys())
    if odd:
        lacking = sorted(expected.keys() - tensors.keys())
        where = f"it lacks {len(lacking)} of {len(expected)} tensors, the first" if lacking else "it has"
        odd = lacking or odd
        targets = _targets(adapter)
        named = f"\nits target_modules=[{','.join(targets)}]" if targets is not None else ""
        raise ConfigError(f"{what}: does not fit this base and lora.target_modules: {where} {odd[0]}{named}")
    settings = adapter.settings
    ratio = _scaling(settings["lora_alpha"], settings["r"], settings.get("use_rslora", False)) / _scaling(
        lora.alpha, lora.rank, lora.rslora
    )
    if settings["r"] != lora.rank and settings.get("target_parameters"):
        raise ConfigError(f"{what}: an adapter on experts cannot be widened; it is lora.rank={settings['r']}")
    if ratio != 1 or settings["r"] != lora.rank:
        tensors = {name: _widened(name, tensor, expected[name], ratio) for name, tensor in tensors.items()}
    for name, tensor in tensors.items():
        if tensor.shape != expected[name].shape:
            raise ConfigError(
                f"{what}: {name} is {list(tensor.shape)}, this base needs {list(expected[name].shape)}; "
                f"it was made for {adapter.settings.get('base_model_name_or_path')}"
            )
    set_peft_model_state_dict(model, tensors)


def keep_copy(adapter: Adapter, folder: Path) -> None:
    """Keep the starting adapter in the run directory: it is the baseline of every later comparison.

    A whole copy of it that is there already stays; raises ConfigError when the adapter is not what it was any more.
    """
    if _is_copy(adapter, folder):
        return
    aside = folder.with_name(f".tmp-{folder.name}")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    for name in (CONFIG, TENSORS):
        shutil.copyfile(adapter.folder / name, aside / name)
    if not _is_copy(adapter, aside):
        raise ConfigError(f"model.adapter={adapter.source}: {adapter.folder} was changed while it was read")
    # Killed between the two, the next start makes the copy again.
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(aside, folder)


def _is_copy(adapter: Adapter, folder: Path) -> bool:
    there = all((folder / name).is_file() for name in (CONFIG, TENSORS))
    return there and adapter_fingerprint(folder) == adapter.fingerprint
