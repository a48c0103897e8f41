"""Puts the lean functions in place of the forwards of a verified model's layers, and takes them out again.

Modules, parameters and names stay PEFT's and transformers' own: only `forward` of the instance changes, and each call
falls back to the original forward where the module is not in the plain state that the lean function covers.
"""

from __future__ import annotations

import types
from typing import TYPE_CHECKING, Any

import torch

from dpo.engine.attention import packed_attention
from dpo.engine.lean_layers import LeanHeads, LeanMlp, LeanNorm, activation_name
from dpo.engine.lean_linear import Branch, LeanLinear, branch_of, keeps_dequantized
from dpo.modeling.modes import is_4bit

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
ATTENTIONS: dict[str, Callable[[Any], int | None]] = {
    "LlamaAttention": lambda module: None,
    "MistralAttention": lambda module: getattr(module.config, "sliding_window", None),
    "Qwen2Attention": lambda module: module.sliding_window,
}
"""Those that do nothing between projection and rotation -> where each class reads its sliding window."""
MLPS = ("LlamaMLP", "MistralMLP", "Qwen2MLP", "Qwen3MLP", "GemmaMLP", "Gemma3MLP")


def make_lean(base: torch.nn.Module) -> None:
    """Swap the forwards of all norms, gated MLPs, attentions and (LoRA or 4-bit) linear layers below `base`."""
    from peft.tuners.lora.layer import LoraLayer

    for module in base.modules():
        name = type(module).__name__
        if getattr(module, _MARK, False):
            continue
        if name in NORMS and type(module).__module__.startswith("transformers."):
            _swap(module, _norm(module, NORMS[name]))
        elif name in MLPS and activation_name(getattr(module, "act_fn", None)) is not None:
            _swap(module, _mlp(module))
        elif name in ATTENTIONS:
            _swap(module, _attention(module))
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
        branches = _branches((self.gate_proj, self.up_proj, self.down_proj), x)
        if branches is None:
            return original(x)
        return LeanMlp.apply(x, act, branches, *_adapters(branches))

    return forward


def _attention(module: Any) -> Callable[..., Any]:
    original, window = module.forward, ATTENTIONS[type(module).__name__]

    def forward(
        self: Any,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
        attention_mask: torch.Tensor | None = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> Any:
        packed = kwargs.get("packed")
        branches = None
        if packed is not None and position_embeddings is not None and past_key_values is None:
            branches = _branches((self.q_proj, self.k_proj, self.v_proj), hidden_states)
        if branches is None or position_embeddings is None or packed is None:
            return original(
                hidden_states=hidden_states,
                position_embeddings=position_embeddings,
                attention_mask=attention_mask,
                past_key_values=past_key_values,
                **kwargs,
            )
        query, key, value = LeanHeads.apply(hidden_states, *position_embeddings, branches, *_adapters(branches))
        out = packed_attention(
            query,
            key,
            value,
            packed,
            scaling=self.scaling,
            sliding_window=window(self),
            dropout=self.attention_dropout if self.training else 0.0,
        )
        return self.o_proj(out.reshape(*hidden_states.shape[:-1], -1)), None

    return forward


def _branches(linears: tuple[Any, ...], x: torch.Tensor) -> tuple[Branch, ...] | None:
    """Every one of `linears` as a branch, None if one is more than that."""
    found = [branch for branch in map(branch_of, linears) if branch is not None and _suits(branch.layer, x)]
    return tuple(found) if len(found) == len(linears) else None


def _adapters(branches: tuple[Branch, ...]) -> list[torch.Tensor | None]:
    return [tensor for branch in branches for tensor in (branch.down, branch.up)]


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
    few = x.numel() // x.shape[-1] < FEW_ROWS and not torch.is_grad_enabled()
    return not (few and is_4bit(layer)) or keeps_dequantized(layer)
