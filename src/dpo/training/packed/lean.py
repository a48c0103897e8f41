"""Puts the lean functions in place of the forwards of a verified model's layers, and takes them out again.

Modules, parameters and names stay PEFT's and transformers' own: only `forward` of the instance changes, and each call
falls back to the original forward where the module is not in the plain state that the lean function covers.
"""

from __future__ import annotations

import types
from typing import TYPE_CHECKING, Any

import torch

from dpo.training.packed.lean_linear import LeanLinear, branch_of
from dpo.training.packed.lean_mlp import LeanMlp, activation_name
from dpo.training.packed.lean_norm import LeanNorm
from dpo.training.packed.modes import is_4bit

if TYPE_CHECKING:
    from collections.abc import Callable

_MARK = "_dpo_lean"
NORMS = {
    "LlamaRMSNorm": False,
    "MistralRMSNorm": False,
    "Qwen2RMSNorm": False,
    "Qwen3RMSNorm": False,
    "GemmaRMSNorm": True,
    "Gemma3RMSNorm": True,
}
"""Class name -> whether the scale is 1 + weight."""
FEW_ROWS = 64
MLPS = ("LlamaMLP", "MistralMLP", "Qwen2MLP", "Qwen3MLP", "GemmaMLP", "Gemma3MLP")


def make_lean(base: torch.nn.Module) -> None:
    """Swap the forwards of all norms, gated MLPs and (LoRA or 4-bit) linear layers below `base`."""
    from peft.tuners.lora.layer import LoraLayer

    for module in base.modules():
        name = type(module).__name__
        if getattr(module, _MARK, False):
            continue
        if name in NORMS and type(module).__module__.startswith("transformers."):
            _swap(module, _norm(module, NORMS[name]))
        elif name in MLPS and activation_name(getattr(module, "act_fn", None)) is not None:
            _swap(module, _mlp(module))
        elif isinstance(module, LoraLayer) and isinstance(module, torch.nn.Module):
            if not isinstance(module.get_base_layer(), (torch.nn.Linear,)):
                continue
            _swap(module, _linear(module))
        elif is_4bit(module):
            _swap(module, _linear(module))


def undo_lean(base: torch.nn.Module) -> None:
    """Give every layer below `base` its class's forward back."""
    for module in base.modules():
        if module.__dict__.pop(_MARK, False):
            module.__dict__.pop("forward", None)


def _swap(module: torch.nn.Module, forward: Callable[..., Any]) -> None:
    module.forward = types.MethodType(forward, module)
    module.__dict__[_MARK] = True


def _linear(module: Any) -> Callable[..., Any]:
    original = module.forward

    def forward(self: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        branch = None if args or kwargs or x.shape[0] == 0 else branch_of(self)
        if branch is None or not _suits(branch.layer, x):
            return original(x, *args, **kwargs)
        return LeanLinear.apply(x, branch.down, branch.up, branch)

    return forward


def _mlp(module: Any) -> Callable[..., Any]:
    original = module.forward
    act = activation_name(module.act_fn)

    def forward(self: Any, x: torch.Tensor) -> Any:
        branches = tuple(branch_of(linear) for linear in (self.gate_proj, self.up_proj, self.down_proj))
        found = [branch for branch in branches if branch is not None and _suits(branch.layer, x)]
        if len(found) < 3:
            return original(x)
        adapters = [tensor for branch in found for tensor in (branch.down, branch.up)]
        return LeanMlp.apply(x, act, tuple(found), *adapters)

    return forward


def _norm(module: Any, shifted: bool) -> Callable[..., Any]:
    eps = module.eps if hasattr(module, "eps") else module.variance_epsilon

    def forward(self: Any, x: torch.Tensor) -> Any:
        return LeanNorm.apply(x, self.weight, eps, shifted)

    return forward


def _suits(layer: Any, x: torch.Tensor) -> bool:
    # Offloaded and meta layers go through their own hooks.
    if layer.weight.device != x.device or hasattr(layer, "_hf_hook"):
        return False
    # Generation reads a few rows at a time, for which bitsandbytes has kernels that unpack nothing.
    return torch.is_grad_enabled() or not is_4bit(layer) or x.numel() // x.shape[-1] >= FEW_ROWS
