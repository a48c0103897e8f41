"""Which layers a loss reaches: what gets no gradient can learn nothing, and stops a run at its first step.

A family may choose tokens by scores that carry no gradient (DeepSeek's indexer), read a layer's weight past its adapter
(Jamba's dt_proj), or hold layers that text never passes.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import torch

from dpo.config.lora import Lora, Trainable
from dpo.errors import ConfigError, is_out_of_memory
from dpo.modeling.inspection import is_linear, matches, outside_text
from dpo.modeling.modes import scoring_mode
from dpo.modeling.randomness import draws_at_random

TOKENS = 12


def silent_layers(model: Any, lora: Trainable) -> list[str]:
    """The linear layers that no loss reaches, to be left as they are; frozen for full fine-tuning.

    Raises ConfigError where `lora` names one: who names a module wants it trained.
    """
    outside = tuple(f"{name}." for name in outside_text(model))
    linear = [name for name, module in model.named_modules() if is_linear(module, model)]
    found = unreached(model, [name for name in linear if not name.startswith(outside)])
    if isinstance(lora, Lora):
        targets = lora.target_modules
        for name in found if targets != "all-linear" else []:
            if any(matches(target, name, targets) for target in ([targets] if isinstance(targets, str) else targets)):
                raise ConfigError(
                    f"lora.target_modules: no gradient reaches {name}, so an adapter would learn nothing there; leave "
                    f"{name.rpartition('.')[2]} out"
                )
        return found if targets == "all-linear" else []
    for name in found:
        model.get_submodule(name).requires_grad_(False)
    return found


def describe(silent: Sequence[str]) -> str:
    """A phrase on layers left as they are; empty for none."""
    kinds = sorted({re.sub(r"^.*?\.\d+\.", "", name) for name in silent})
    return f", {' and '.join(kinds)} left as they are as no gradient reaches them" if silent else ""


def unreached(model: Any, names: Iterable[str]) -> list[str]:
    """Of the modules `names`, those that text passes without a gradient for the tensor they give, or never passes.

    Of several experts only where no other of their layer gets one, as each does when a token comes to it. A model whose
    forward fails reaches all of them: that is for others to say.
    """
    wanted = {name: module for name, module in model.named_modules() if name in set(names)}
    given: dict[str, list[torch.Tensor]] = {name: [] for name in wanted}

    def keep(name: str, output: Any) -> None:
        # A router that is a linear layer with more to give (Llama 4) takes no adapter.
        if isinstance(output, torch.Tensor):
            given[name].append(output)

    hooks = [
        module.register_forward_hook(lambda module, inputs, output, name=name: keep(name, output))
        for name, module in wanted.items()
    ]
    # Nothing else in a frozen model asks for a gradient.
    start = model.get_input_embeddings().register_forward_hook(lambda module, inputs, output: output.requires_grad_())
    try:
        arrives = _arrives(model, given)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        return []
    finally:
        for hook in (*hooks, start):
            hook.remove()
    groups: dict[str, list[str]] = defaultdict(list)
    for name in wanted:
        groups[_expert(name)].append(name)
    return [name for group in groups.values() if not arrives.intersection(group) for name in group]


def _arrives(model: Any, given: dict[str, list[torch.Tensor]]) -> set[str]:
    embeddings = model.get_input_embeddings().weight
    ids = torch.arange(TOKENS, device=embeddings.device).unsqueeze(0) % embeddings.shape[0]
    devices = [embeddings.device] if embeddings.device.type == "cuda" else []
    with (
        torch.random.fork_rng(devices=devices),
        scoring_mode(model, training=not draws_at_random(model)),
        torch.enable_grad(),
    ):
        total = model(input_ids=ids, use_cache=False).logits.float().log_softmax(-1)[..., 0].sum()
        outputs = [(name, output) for name, found in given.items() for output in found if output.requires_grad]
        gradients = torch.autograd.grad(total, [output for _, output in outputs], allow_unused=True)
    return {name for (name, _), gradient in zip(outputs, gradients, strict=True) if gradient is not None}


def _expert(name: str) -> str:
    """A module's name without its expert's number, the second in it: the first is its layer's."""
    layer = re.match(r".*?\.\d+\.", name)
    start = layer.end() if layer else 0
    return name[:start] + re.sub(r"\.\d+(?=\.|$)", ".*", name[start:])
