"""Frozen linear layers with LoRA branches as one autograd function, for PEFT's layers as PEFT left them.

PEFT's own path casts, clones and makes three more passes over the output; here the branch is added in place by the
matrix product, the input is kept once, and 4-bit weights are dequantized once a forward and once a backward. Layers
that read the same input share the products with their stacked A, and add up their gradients to it inside the products.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from dpo.modeling.modes import is_4bit

if TYPE_CHECKING:
    from collections.abc import Sequence


DEQUANTIZED_SHARE = 0.25
"""Of the free memory, that dequantized 4-bit weights may take."""
_DEQUANTIZED = "_dpo_dequantized"
"""Where a layer keeps its dequantized weight, once `keep_dequantized` has made room for it."""


@dataclass(frozen=True)
class _Dequantized:
    packed: torch.Tensor
    version: int
    dense: torch.Tensor

    def answers(self, packed: torch.Tensor, dtype: torch.dtype) -> bool:
        # Merging an adapter replaces the packed weight, loading a state dict writes into it.
        same = self.packed is packed and self.version == packed._version
        return same and self.dense.dtype == dtype and self.dense.device == packed.device


@dataclass
class Branch:
    """A linear layer as numbers: out = x W^T + b + s (x A^T) B^T, with W [out, in], A [r, in], B [out, r]."""

    layer: Any
    """The frozen nn.Linear or Linear4bit."""
    down: torch.Tensor | None
    """A, or None without an active adapter."""
    up: torch.Tensor | None
    """B."""
    scaling: float

    def weight(self, dtype: torch.dtype) -> torch.Tensor:
        """W in `dtype`, dequantized if it is stored in 4 bits."""
        return dense_weight(self.layer, dtype)

    @property
    def rank(self) -> int:
        """r; 0 without an active adapter."""
        return 0 if self.down is None else self.down.shape[0]


def with_adapters(branches: Sequence[Branch], adapters: Sequence[torch.Tensor | None]) -> list[Branch]:
    """The same layers with A and B of `adapters`: those of the first branch, of the second, ..."""
    return [
        Branch(branch.layer, adapters[2 * i], adapters[2 * i + 1], branch.scaling) for i, branch in enumerate(branches)
    ]


def project(x: torch.Tensor, branches: Sequence[Branch]) -> tuple[list[torch.Tensor], torch.Tensor | None]:
    """[T, in] -> ([T, out] of every branch; [T, sum of r] = x A^T of all of them, None without an adapter)."""
    stacked = _stacked_down(branches, x.dtype)
    inner = None if stacked is None else torch.mm(x, stacked.t())
    outs, start = [], 0
    for branch in branches:
        weight, bias = branch.weight(x.dtype), branch.layer.bias
        out = torch.mm(x, weight.t()) if bias is None else torch.addmm(bias.to(x.dtype), x, weight.t())
        if inner is not None and branch.up is not None:
            own = inner[:, start : start + branch.rank]
            out.addmm_(own, branch.up.to(x.dtype).t(), alpha=branch.scaling)
        start += branch.rank
        outs.append(out)
    return outs, inner


def project_backward(
    grads: Sequence[torch.Tensor],
    x: torch.Tensor | None,
    inner: torch.Tensor | None,
    branches: Sequence[Branch],
    wants_x: bool,
) -> tuple[torch.Tensor | None, list[torch.Tensor | None]]:
    """([T, in] gradient of x; gradients of A and B of the first branch, of the second, ...) of `project`."""
    grad_x: torch.Tensor | None = None
    grad_inner = None if inner is None else torch.empty_like(inner)
    ups: list[torch.Tensor | None] = []
    start = 0
    for grad, branch in zip(grads, branches, strict=True):
        if wants_x:
            weight = branch.weight(grad.dtype)
            grad_x = torch.mm(grad, weight) if grad_x is None else grad_x.addmm_(grad, weight)
        if inner is None or grad_inner is None or branch.up is None:
            ups.append(None)
            continue
        own = slice(start, start + branch.rank)
        start += branch.rank
        grad_inner[:, own] = torch.mm(grad, branch.up.to(grad.dtype)).mul_(branch.scaling)
        ups.append(torch.mm(grad.t(), inner[:, own]).mul_(branch.scaling).to(branch.up.dtype))
    if grad_inner is None or x is None:
        return grad_x, [None] * (2 * len(branches))
    if grad_x is not None:
        stacked = _stacked_down(branches, grad_x.dtype)
        assert stacked is not None
        grad_x.addmm_(grad_inner, stacked)
    downs = torch.mm(grad_inner.t(), x).split([branch.rank for branch in branches])
    adapters: list[torch.Tensor | None] = []
    for branch, grad_down, grad_up in zip(branches, downs, ups, strict=True):
        adapters += [None if branch.down is None else grad_down.to(branch.down.dtype), grad_up]
    return grad_x, adapters


def _stacked_down(branches: Sequence[Branch], dtype: torch.dtype) -> torch.Tensor | None:
    """[sum of r, in] every A below the one before, None without an adapter."""
    downs = [branch.down.to(dtype) for branch in branches if branch.down is not None]
    if len(downs) < 2:
        return downs[0] if downs else None
    return torch.cat(downs)


def state_of(layer: Any) -> Any:
    """The scales and shape of a Linear4bit: with its weight, or on the layer where weights are spread over ranks."""
    state = getattr(layer.weight, "quant_state", None)
    return layer.quant_state if state is None else state


def dense_weight(layer: Any, dtype: torch.dtype) -> torch.Tensor:
    """[out, in] weight of an nn.Linear or Linear4bit in `dtype`."""
    if not is_4bit(layer):
        weight: torch.Tensor = layer.weight.detach()
        return weight.to(dtype)
    kept = layer.__dict__.get(_DEQUANTIZED)
    if kept is not None and kept.answers(layer.weight, dtype):
        dequantized: torch.Tensor = kept.dense
        return dequantized
    state = state_of(layer)
    scales = state.absmax
    if state.nested:
        scales = torch.ops.bitsandbytes.dequantize_blockwise.default(
            scales, state.state2.absmax, state.state2.code, state.state2.blocksize, torch.float32
        )
        scales = scales.add_(state.offset)
    packed = layer.weight.detach().view(-1, 1)
    dense: torch.Tensor = torch.ops.bitsandbytes.dequantize_4bit.default(
        packed, scales, state.blocksize, state.quant_type, state.shape, dtype
    )
    if _DEQUANTIZED in layer.__dict__:
        layer.__dict__[_DEQUANTIZED] = _Dequantized(layer.weight, layer.weight._version, dense)
    return dense


def keeps_dequantized(layer: Any) -> bool:
    """Whether the weight of a Linear4bit stays dequantized from its first use on. Asked so, and not whether it lies
    dequantized by now: the same rows must be multiplied the same way, whatever was multiplied before them."""
    return _DEQUANTIZED in layer.__dict__


def keep_dequantized(model: torch.nn.Module, dtype: torch.dtype, free: int) -> int:
    """Keep every 4-bit weight of `model` dequantized from its first use on, if all of them in `dtype` take at most
    `DEQUANTIZED_SHARE` of `free` bytes: the same numbers sooner. Returns the bytes that takes, 0 if nothing is kept."""
    layers = [module for module in model.modules() if is_4bit(module)]
    numbers = sum(math.prod(state_of(layer).shape) for layer in layers)
    needed = numbers * torch.empty((), dtype=dtype).element_size()
    if needed > DEQUANTIZED_SHARE * free:
        return 0
    for layer in layers:
        layer.__dict__.setdefault(_DEQUANTIZED, None)
    return needed


def branch_of(module: Any) -> Branch | None:
    """`module` as a Branch if it is a plain linear layer, or one with a single vanilla LoRA; None if it is more.

    More: dropout, DoRA and other variants, several active adapters, merged ones, a bias in the branch, trainable base
    weights, an unusual 4-bit state. Asked at every call, because adapters are switched on and off.
    """
    from peft.tuners.lora.layer import LoraLayer

    if not isinstance(module, LoraLayer):
        return _frozen(module, None, None, 1.0)
    layer = module.get_base_layer()
    if module.disable_adapters:
        # With DoRA off and on the same kernels, so that a reference does not differ by their rounding.
        return None if module.merged or module.lora_variant else _frozen(layer, None, None, 1.0)
    names = [name for name in module.active_adapters if name in module.lora_A]
    if module.merged or len(names) > 1 or getattr(module, "fan_in_fan_out", False):
        return None
    if not names:
        return _frozen(layer, None, None, 1.0)
    name = names[0]
    dropout = module.lora_dropout[name]
    if name in module.lora_variant or (isinstance(dropout, torch.nn.Dropout) and dropout.p > 0 and dropout.training):
        return None
    down, up = module.lora_A[name], module.lora_B[name]
    if type(down) is not torch.nn.Linear or type(up) is not torch.nn.Linear or up.bias is not None:
        return None
    return _frozen(layer, down.weight, up.weight, module.scaling[name])


def _frozen(layer: Any, down: torch.Tensor | None, up: torch.Tensor | None, scaling: float) -> Branch | None:
    if is_4bit(layer):
        state = state_of(layer)
        if state is None or getattr(state, "packing_format_for_cpu", False) or len(state.shape) != 2:
            return None
        if layer.weight.dtype != torch.uint8 or (state.nested and state.state2.blocksize != 256):
            return None
    elif type(layer) is not torch.nn.Linear or not layer.weight.dtype.is_floating_point:
        return None
    if layer.weight.requires_grad or (layer.bias is not None and layer.bias.requires_grad):
        return None
    return Branch(layer, down, up, scaling)


def compute_dtype(x: torch.Tensor) -> torch.dtype:
    """What a linear layer would compute in here: autocast's dtype, else that of `x`."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


class LeanLinear(torch.autograd.Function):
    """One `Branch` with gradients to x, A and B."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, down: torch.Tensor | None, up: torch.Tensor | None, branch: Branch
    ) -> torch.Tensor:
        flat = x.detach().reshape(-1, x.shape[-1]).to(compute_dtype(x))
        with torch.autocast(x.device.type, enabled=False):
            (out,), inner = project(flat, [branch])
        # Without an adapter only the weight is needed again.
        ctx.save_for_backward(flat if inner is not None else None, inner, down, up)
        ctx.branch, ctx.shape, ctx.dtype = branch, x.shape, x.dtype
        return out.view(*x.shape[:-1], out.shape[-1])

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override]
        flat, inner, *adapters = ctx.saved_tensors
        grad = grad.reshape(-1, grad.shape[-1])
        with torch.autocast(grad.device.type, enabled=False):
            grad_x, adapter_grads = project_backward(
                [grad], flat, inner, with_adapters([ctx.branch], adapters), ctx.needs_input_grad[0]
            )
        if grad_x is not None:
            grad_x = grad_x.view(ctx.shape).to(ctx.dtype)
        return grad_x, *adapter_grads, None
