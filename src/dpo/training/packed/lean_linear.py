"""A frozen linear layer with a LoRA branch as one autograd function, for PEFT's layers as PEFT left them.

PEFT's own path casts, clones and makes three more passes over the output; here the branch is added in place by the
matrix product, the input is kept once, and 4-bit weights are unpacked once a forward and once a backward.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from dpo.training.packed.modes import is_4bit


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
        """W in `dtype`, unpacked if it is stored in 4 bits."""
        return dense_weight(self.layer, dtype)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """[T, in] -> ([T, out], [T, r] = x A^T)."""
        weight = self.weight(x.dtype)
        bias = self.layer.bias
        out = torch.mm(x, weight.t()) if bias is None else torch.addmm(bias.to(x.dtype), x, weight.t())
        if self.down is None or self.up is None:
            return out, None
        inner = torch.mm(x, self.down.to(x.dtype).t())
        out.addmm_(inner, self.up.to(x.dtype).t(), alpha=self.scaling)
        return out, inner

    def backward(
        self, grad: torch.Tensor, x: torch.Tensor, inner: torch.Tensor | None, into: torch.Tensor | None, wants_x: bool
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        """([T, in] gradient of x, added to `into` where given; gradients of A and B)."""
        grad_x = into
        if wants_x:
            weight = self.weight(grad.dtype)
            grad_x = torch.mm(grad, weight) if into is None else into.addmm_(grad, weight)
        if self.down is None or self.up is None or inner is None:
            return grad_x, None, None
        grad_inner = torch.mm(grad, self.up.to(grad.dtype))
        if wants_x and grad_x is not None:
            grad_x.addmm_(grad_inner, self.down.to(grad.dtype), alpha=self.scaling)
        grad_down = torch.mm(grad_inner.t(), x).mul_(self.scaling).to(self.down.dtype)
        grad_up = torch.mm(grad.t(), inner).mul_(self.scaling).to(self.up.dtype)
        return grad_x, grad_down, grad_up


def state_of(layer: Any) -> Any:
    """The scales and shape of a Linear4bit: with its weight, or on the layer where weights are spread over ranks."""
    state = getattr(layer.weight, "quant_state", None)
    return layer.quant_state if state is None else state


def dense_weight(layer: Any, dtype: torch.dtype) -> torch.Tensor:
    """[out, in] weight of an nn.Linear or Linear4bit in `dtype`."""
    if not is_4bit(layer):
        weight: torch.Tensor = layer.weight.detach()
        return weight.to(dtype)
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
    return dense


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
        return None if module.merged else _frozen(layer, None, None, 1.0)
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
    """`Branch` with gradients to x, A and B."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, down: torch.Tensor | None, up: torch.Tensor | None, branch: Branch
    ) -> torch.Tensor:
        flat = x.detach().reshape(-1, x.shape[-1]).to(compute_dtype(x))
        with torch.autocast(x.device.type, enabled=False):
            out, inner = branch.forward(flat)
        # Without an adapter only the weight is needed again.
        ctx.save_for_backward(flat if inner is not None else None, inner, down, up)
        ctx.branch, ctx.shape, ctx.dtype = branch, x.shape, x.dtype
        return out.view(*x.shape[:-1], out.shape[-1])

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override]
        flat, inner, down, up = ctx.saved_tensors
        branch = Branch(ctx.branch.layer, down, up, ctx.branch.scaling)
        grad = grad.reshape(-1, grad.shape[-1])
        with torch.autocast(grad.device.type, enabled=False):
            grad_x, grad_down, grad_up = branch.backward(grad, flat, inner, None, ctx.needs_input_grad[0])
        if grad_x is not None:
            grad_x = grad_x.view(ctx.shape).to(ctx.dtype)
        return grad_x, grad_down, grad_up, None
