"""The one look at a model after it is loaded and before it is trained: is it what the config says?

In how many bits its layers are held, which modules each name of `lora.target_modules` matched, what is left out, and
what could be trained but not merged afterwards. One line where all is well, a ConfigError where it is not.
"""

from __future__ import annotations

import contextlib
import copy
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from dpo.config.lora import FullTraining, Lora, Trainable
from dpo.config.nearest import nearest
from dpo.errors import ConfigError
from dpo.modeling.randomness import turn_off_randomness
from dpo.modeling.stored import words

LEAST = 0.5
"""Share of the layers' weights that must be quantized for a base to be called so."""
MERGEABLE = ("Linear", "Linear4bit", "Linear8bitLt", "Embedding", "ParamWrapper")
"""PEFT's layers that `modeling.merge` adds up."""


@dataclass(frozen=True)
class Held:
    """`numbers` weights of one kind of storage ("nf4", "int8", "bfloat16", ...) in modules of the class `owner`."""

    kind: str
    owner: str
    numbers: int
    nested: bool


def inspect(model: Any, lora: Trainable, attention: str) -> str:
    """What the loaded base is, in a few words; raises ConfigError where that is not what `lora` says.

    Args:
        model: transformers' model before adapters are put in.
    """
    held = list(_held(model))
    line = _storage(held, lora, model.config.model_type)
    if model.config._attn_implementation != attention:
        line += f", attention {model.config._attn_implementation}, as {model.config.model_type} has no {attention}"
    if off := turn_off_randomness(model):
        line += f", {' and '.join(off)} off"
    left = outside_text(model)
    if isinstance(lora, Lora):
        check_targets(model, lora)
    elif left:
        for name in left:
            model.get_submodule(name).requires_grad_(False)
    return line + (f", {' and '.join(left)} left out as text alone does not reach it" if left else "")


def _held(model: Any) -> Iterator[Held]:
    """What lies in layers: embeddings, head, norms and biases, which nothing quantizes, are left out."""
    import torch

    head = model.get_output_embeddings()
    for module in model.modules():
        if isinstance(module, torch.nn.Embedding) or module is head:
            continue
        for parameter in module.parameters(recurse=False):
            state: Any = getattr(parameter, "quant_state", None)
            owner = type(module).__name__
            if state is not None:
                yield Held(state.quant_type, owner, state.shape.numel(), bool(state.nested))
            elif parameter.ndim >= 2:
                kind = "int8" if parameter.dtype is torch.int8 else str(parameter.dtype).removeprefix("torch.")
                yield Held(kind, owner, parameter.numel(), False)


def _storage(held: Sequence[Held], lora: Trainable, family: str) -> str:
    asked = lora.quantization
    kind = None if asked is None else "int8" if asked.type is None else asked.type.value
    total = sum(part.numbers for part in held)
    packed = [part for part in held if part.kind in ("nf4", "fp4", "int8")]
    wrong = [p for p in packed if p.kind != kind or p.nested != (asked is not None and bool(asked.double))]
    if wrong:
        found = f"{wrong[0].kind}{' with double quantization' if wrong[0].nested else ''}"
        raise ConfigError(f"model.path: its layers are held in {found}, lora.quantization says {words(asked)}")
    dense = Counter[str]()
    for part in held:
        if part not in packed:
            dense[part.owner] += part.numbers
    types = sorted({part.kind for part in held if part not in packed})
    if asked is None or not total:
        return f"layers in {' and '.join(types)}"
    share = sum(part.numbers for part in packed) / total
    rest = ", ".join(name for name, _ in dense.most_common(3))
    if share < LEAST:
        raise ConfigError(
            f"lora.quantization: bitsandbytes quantizes only {share:.0%} of the weights in {family}'s layers ({rest} "
            f"{'stays' if len(dense) == 1 else 'stay'} in 16 bits)\nuse lora=lora, which says what it does"
        )
    if share == 1:
        return f"layers in {words(asked)}"
    return f"{share:.0%} of the layers' weights in {words(asked)}, {rest} in {' and '.join(types)}"


MIXERS = ("falcon_h1", "falcon_mamba", "mamba", "mamba2", "nemotron_h")
READ_DIRECTLY = ("out_proj", "conv1d")


def outside_text(model: Any) -> list[str]:
    """Names of what a text does not pass through in a model of several modalities: vision towers, projectors."""
    config = model.config
    if config.get_text_config() is config:
        return []
    text = model.get_decoder()
    kept = {id(module) for module in (*text.modules(), model.get_output_embeddings())}

    def walk(module: Any, name: str) -> list[str]:
        if not kept & {id(inner) for inner in module.modules()}:
            return [name] if any(True for _ in module.parameters()) else []
        if id(module) in kept:
            return []
        inside = [(f"{name}.{child}".lstrip("."), inner) for child, inner in module.named_children()]
        return [found for child, inner in inside for found in walk(inner, child)]

    return walk(model, "")


def excluded(model: Any, lora: Trainable, silent: Sequence[str] = ()) -> str | list[str] | None:
    """PEFT's exclude_modules: `lora.exclude_modules`, what text does not pass through, the `silent` layers, and of all
    linear ones those whose weight a state-space kernel reads past any adapter (PEFT refuses them)."""
    left = outside_text(model) + list(silent)
    if isinstance(lora, Lora) and lora.target_modules == "all-linear" and model.config.model_type in MIXERS:
        left += [name for name, _ in model.named_modules() if name.rpartition(".")[2] in READ_DIRECTLY]
    own: str | list[str] | None = lora.exclude_modules if isinstance(lora, Lora) else None
    if not left:
        return own
    patterns = [rf"(?:{'|'.join(map(re.escape, left))})(?:\..*)?"]
    if isinstance(own, str):
        patterns.append(own)
    elif own is not None:
        patterns.append(rf"(?:.*\.)?(?:{'|'.join(map(re.escape, own))})")
    return "|".join(f"(?:{pattern})" for pattern in patterns)


def check_targets(model: Any, lora: Lora) -> None:
    """Raise ConfigError unless every name of `lora` matches modules that adapters can be put on, and merged into."""
    from dpo.modeling.policy import lora_config

    wanted = copy.deepcopy(lora_config(lora, excluded(model, lora)))
    with adapting():
        _follow_renames(wanted, model)
    named = {name: module for name, module in model.named_modules() if name}
    usable = sorted({name.rpartition(".")[2] for name, module in named.items() if is_linear(module, model)})
    for key, names in (("target_modules", wanted.target_modules), ("exclude_modules", lora.exclude_modules)):
        if names is None or names == "all-linear":
            continue
        for name in _each(names):
            found = [one for one in named if matches(name, one, names)]
            if not found:
                raise ConfigError(f"lora.{key}: the model has no module {name}{nearest(name, usable)}")
            if key == "target_modules":
                for one in found:
                    _check_target(one, named[one], model, usable)
    if wanted.target_parameters and (lora.dora or lora.dropout > 0):
        raise ConfigError(
            f"lora.{'dora' if lora.dora else 'dropout'}: experts are parameters of one tensor, which take adapters "
            f"without it only; set it to {'false' if lora.dora else '0'}, or name the modules: "
            f"lora.target_modules=[{','.join(usable[:3])}]"
        )


def _follow_renames(wanted: Any, model: Any) -> None:
    """PEFT maps the names that experts had before they became parameters."""
    from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers

    if wanted.target_modules != "all-linear" or hasattr(model.config, "num_experts"):
        convert_peft_config_for_transformers(wanted, model, None)


def _each(names: Any) -> list[str]:
    return [names] if isinstance(names, str) else sorted(names)


def matches(name: str, module: str, names: Any) -> bool:
    """Whether PEFT takes `module` for the `name` of its settings `names`: a regex, or the end of its path."""
    if isinstance(names, str):
        return re.fullmatch(name, module) is not None
    return module == name or module.endswith(f".{name}")


def is_linear(module: Any, model: Any) -> bool:
    """Whether it is a linear layer, and not the LM head."""
    import torch
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, (torch.nn.Linear, Conv1D)) and module is not model.get_output_embeddings()


def _check_target(name: str, module: Any, model: Any, usable: Sequence[str]) -> None:
    import torch

    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    short = name.rpartition(".")[2]
    if module is head:
        raise ConfigError(
            f"lora.target_modules: {short} is the LM head, whose adapter would never be trained; leave it out"
        )
    if module is embeddings and head is not None and getattr(head, "weight", None) is module.weight:
        raise ConfigError(
            f"lora.target_modules: {short} is tied to the LM head, so an adapter on it cannot be merged; leave it out"
        )
    if not is_linear(module, model) and not isinstance(module, torch.nn.Embedding):
        raise ConfigError(
            f"lora.target_modules: {name} is a {type(module).__name__}, which takes no adapter"
            f"{nearest(short, usable) if len(usable) <= 12 else ''}"
        )


@contextlib.contextmanager
def adapting() -> Iterator[None]:
    """PEFT's refusal to adapt a model is a ConfigError; what fails elsewhere stays what it is."""
    try:
        yield
    except (ValueError, TypeError, NotImplementedError) as error:
        trace = error.__traceback__
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        if trace is None or not str(trace.tb_frame.f_globals.get("__name__")).startswith("peft."):
            raise
        raise ConfigError(f"lora: PEFT cannot adapt this model: {_first(error)}") from error


def _first(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def adapted(model: Any, lora: Trainable) -> str:
    """What was given adapters, in a few words; raises ConfigError where one could be trained but never merged."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    if isinstance(lora, FullTraining):
        return "every weight trains"
    kinds = Counter(type(module).__name__ for module in model.modules() if isinstance(module, BaseTunerLayer))
    for kind in kinds:
        if kind not in MERGEABLE:
            raise ConfigError(f"lora.target_modules: an adapter on a {kind} could not be merged; leave it out")
    experts = kinds.pop("ParamWrapper", 0)
    tables = kinds.pop("Embedding", 0)
    parts = [(sum(kinds.values()), "linear layer"), (tables, "embedding"), (experts, "parameter")]
    return "adapters on " + " and ".join(f"{n} {what}{'s' if n != 1 else ''}" for n, what in parts if n)
