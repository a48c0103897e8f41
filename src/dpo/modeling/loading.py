"""Loading weights with every tensor accounted for: what a model lacks, transformers fills at random and only warns."""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

from dpo.errors import CheckpointError, ConfigError, DpoError
from dpo.modeling.safetensors import read_header

# Masks and tables that old checkpoints hold and that every model computes for itself.
BUFFERS = re.compile(r"(^|\.)(inv_freq|masked_bias|position_ids|causal_mask|attn\.bias|attention\.bias)$")
SHOWN = 3


def load_counted(auto: Any, folder: Path, what: str, error: type[DpoError] = ConfigError, **settings: Any) -> Any:
    """`auto.from_pretrained(folder, **settings)`, whose model has all its tensors from the folder.

    Tensors of whole parts that this class does not have, such as a classifier's head or layers that predict further
    tokens, are left out, and a line says so. `what` begins the line or the error.

    Raises:
        error: tensors are missing, of another shape, or belong to a module of the model that has no place for them.
    """
    try:
        model, found = auto.from_pretrained(
            folder, output_loading_info=True, ignore_mismatched_sizes=True, use_safetensors=True, **settings
        )
    except RuntimeError as fault:
        first = str(fault).strip().splitlines()[0] if str(fault).strip() else ""
        if not first.startswith(("Error(s) in loading", "We encountered some issues")):
            raise
        raise error(f"{what}: its tensors do not fit the model of its config.json ({first:.160})") from None
    except Exception as fault:
        if type(fault).__name__ != "SafetensorError":
            raise
        raise error(f"{what}: its weights cannot be read: {fault!s:.160}") from None
    mismatched = {str(name): f"{list(has)} for {list(needs)}" for name, has, needs in found["mismatched_keys"]}
    check_tensors(model, what, found["missing_keys"], found["unexpected_keys"], mismatched, error)
    return model


def check_tensors(
    model: Any,
    what: str,
    missing: Collection[str],
    unexpected: Collection[str],
    mismatched: dict[str, str],
    error: type[DpoError] = ConfigError,
) -> None:
    """Raise `error` unless a model got all its tensors; `mismatched` says by name which shape stood for which."""
    strange, parts = [], set()
    for name in sorted(unexpected):
        part = _other_part(model, name)
        if part is not None:
            parts.add(part)
        elif not BUFFERS.search(name):
            strange.append(name)
    faults = []
    if missing:
        faults.append(f"{_count(missing)} missing: {_names(missing)}")
    if mismatched:
        faults.append(f"{_count(mismatched)} of another shape: {_names([f'{k} {v}' for k, v in mismatched.items()])}")
    if strange:
        faults.append(f"{_count(strange)} that the model of its config.json has no place for: {_names(strange)}")
    if faults:
        raise error("\n".join(f"{what}: {fault}" for fault in faults))
    if parts:
        _say_once(f"{what}: left out what this model has no part for: {', '.join(sorted(parts))}")


def check_restored(model: Any, folder: Path) -> None:
    """Raise CheckpointError unless the safetensors in `folder`, a checkpoint of the whole `model`, hold what of it is
    trained, in its shapes, and nothing that has no place in it."""
    held: dict[str, tuple[int, ...]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            held |= {name: tensor.shape for name, tensor in read_header(path).items()}
        except (ValueError, OSError) as fault:
            raise CheckpointError(f"{path}: {fault}") from None
    needed = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    # Of tied tensors one is written.
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if parameter.requires_grad:
            names.setdefault(id(parameter), []).append(name)
    odd = {
        "missing": [same[0] for same in names.values() if not held.keys() & set(same)],
        "that this model has no place for": held.keys() - needed.keys(),
        "of another shape": [name for name in held.keys() & needed.keys() if held[name] != needed[name]],
    }
    faults = [f"{folder}: {_count(found)} {says}: {_names(found)}" for says, found in odd.items() if found]
    if faults:
        raise CheckpointError("\n".join(faults))


def _other_part(model: Any, name: str) -> str | None:
    """The part of a foreign model that the tensor `name` belongs to; None when its place is in a part of this one."""
    path = name.split(".")[:-1]
    prefix = getattr(model, "base_model_prefix", "")
    depth = 1 if path and path[0] == prefix else 0
    modules: dict[str, Any] = dict(model.named_modules())
    for end in range(1, len(path) + 1):
        part = ".".join(path[:end])
        if part in modules:
            continue
        if end <= depth + 1:
            return part
        # Layers behind the last that predict further tokens; any other number of layers is another model.
        config = model.config.get_text_config()
        more = getattr(config, "num_nextn_predict_layers", None) or 0
        last = getattr(config, "num_hidden_layers", 0)
        if path[end - 1].isdecimal() and last <= int(path[end - 1]) < last + more:
            return part
        return None
    return None


def _count(names: Collection[str]) -> str:
    return f"{len(names)} tensor{'s' * (len(names) != 1)}"


def _names(names: Collection[str]) -> str:
    some = sorted(names)[:SHOWN]
    return ", ".join(some) + (", ..." if len(names) > SHOWN else "")


@functools.cache
def _say_once(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
