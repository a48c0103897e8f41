"""Whether an adapter has tensors for every layer it should: by its base where that is here, else by its own numbers."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from dpo.modeling.embedded import converted_folder
from dpo.modeling.safetensors import read_header

NUMBER = re.compile(r"\.(\d+)\.")
SHOWN = 4


def missing_layers(settings: Mapping[str, Any], modules: Iterable[str]) -> str | None:
    """What an adapter lacks, in words; None when nothing shows.

    Args:
        settings: its adapter_config.json. One that names its layers or leaves modules out means to have gaps.
        modules: paths of the modules it has tensors for.
    """
    named = ("layers_to_transform", "layers_pattern", "exclude_modules", "target_parameters")
    if any(settings.get(key) for key in named):
        return None
    has = set(_places(modules))
    targets = {target for _, target in has}
    asked = settings.get("target_modules")
    if isinstance(asked, list):
        targets &= {str(name).rpartition(".")[2] for name in asked}
    if (base := _base_modules(settings)) is not None:
        lacking = sorted({place for place in _places(base) if place[1] in targets} - has)
        if not lacking:
            return None
        layers = sorted({number for number, _ in lacking})
        return f"no tensor for {len(lacking)} modules of its base, in {_words(layers)} ({lacking[0][1]} the first)"
    numbers = sorted({number for number, target in has if target in targets})
    gaps = sorted(set(range(numbers[-1] + 1)) - set(numbers)) if numbers else []
    return f"no tensor of {_words(gaps)}" if gaps and not _regular(numbers) else None


def _places(modules: Iterable[str]) -> list[tuple[int, str]]:
    """(number of the layer, last name) of each module that lies in a layer; experts may lie in one tensor."""
    found = ((NUMBER.search(f"{module}."), module) for module in modules if ".experts." not in module)
    return [(int(number.group(1)), module.rpartition(".")[2]) for number, module in found if number is not None]


def _regular(numbers: list[int]) -> bool:
    """Whether layers repeat in a pattern, as those with attention do in families that mix kinds of layers."""
    steps = {after - before for before, after in itertools.pairwise(numbers)}
    return len(numbers) > 2 and len(steps) == 1 and steps != {1}


def _base_modules(settings: Mapping[str, Any]) -> set[str] | None:
    """Paths of the modules of the base that have weights, where it is a folder here; nothing is loaded."""
    source = str(settings.get("base_model_name_or_path"))
    name = source.removeprefix("embedded:")
    folder = Path(source).expanduser() if name == source else converted_folder(name)
    if folder is None or not (folder / "config.json").is_file():
        return None
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        tensors = {tensor for file in folder.glob("*.safetensors") for tensor in read_header(file)}
    except (ValueError, OSError, RecursionError):
        return None
    count = (config.get("text_config") or config).get("num_hidden_layers")
    modules = {tensor.removesuffix(".weight") for tensor in tensors if tensor.endswith(".weight")}
    # Layers behind the last predict further tokens; they are left out of the model.
    last = count if isinstance(count, int) else math.inf
    return {module for module in modules if all(number < last for number, _ in _places([module]))} or None


def _words(numbers: list[int]) -> str:
    some = ", ".join(map(str, numbers[:SHOWN])) + (", ..." if len(numbers) > SHOWN else "")
    return f"layer{'s' * (len(numbers) != 1)} {some}"
