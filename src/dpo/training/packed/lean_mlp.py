"""The gated MLP as one autograd function: it keeps x, gate and up, and makes the product of both again backward."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from dpo.training.packed.lean_linear import Branch, compute_dtype

ACTIVATIONS = ("silu", "gelu_tanh")


def activation_name(act: Any) -> str | None:
    """silu or gelu_tanh if `act` (a transformers activation) is one of them, else None."""
    kind = type(act).__name__
    if kind in ("SiLU", "SiLUActivation"):
        return "silu"
    return "gelu_tanh" if kind in ("GELUTanh", "PytorchGELUTanh") else None


def _act(name: str, x: torch.Tensor) -> torch.Tensor:
    return functional.silu(x) if name == "silu" else functional.gelu(x, approximate="tanh")


def _act_backward(name: str, grad: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    if name == "silu":
        return torch.ops.aten.silu_backward(grad, x)
    return torch.ops.aten.gelu_backward(grad, x, approximate="tanh")


class LeanMlp(torch.autograd.Function):
    """down(act(gate(x)) * up(x)) over three branches; gradients to x and to the adapters."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, act: str, branches: tuple[Branch, Branch, Branch], *adapters: torch.Tensor | None
    ) -> torch.Tensor:
        gate_branch, up_branch, down_branch = branches
        flat = x.detach().reshape(-1, x.shape[-1]).to(compute_dtype(x))
        with torch.autocast(x.device.type, enabled=False):
            gate, gate_inner = gate_branch.forward(flat)
            up, up_inner = up_branch.forward(flat)
            out, down_inner = down_branch.forward(_act(act, gate).mul_(up))
        ctx.save_for_backward(flat, gate, up, gate_inner, up_inner, down_inner, *adapters)
        ctx.act, ctx.branches, ctx.shape, ctx.dtype = act, branches, x.shape, x.dtype
        return out.view(x.shape[:-1] + out.shape[-1:])

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override]
        flat, gate, up, gate_inner, up_inner, down_inner, *adapters = ctx.saved_tensors
        gate_branch, up_branch, down_branch = (
            Branch(branch.layer, adapters[2 * i], adapters[2 * i + 1], branch.scaling)
            for i, branch in enumerate(ctx.branches)
        )
        wants_x = ctx.needs_input_grad[0]
        grad = grad.reshape(-1, grad.shape[-1])
        with torch.autocast(grad.device.type, enabled=False):
            activated = _act(ctx.act, gate)
            grad_product, *down_grads = down_branch.backward(grad, activated * up, down_inner, None, True)
            assert grad_product is not None
            activated.mul_(grad_product)
            grad_x, *up_grads = up_branch.backward(activated, flat, up_inner, None, wants_x)
            grad_gate = _act_backward(ctx.act, grad_product.mul_(up), gate)
            grad_x, *gate_grads = gate_branch.backward(grad_gate, flat, gate_inner, grad_x, wants_x)
        if grad_x is not None:
            grad_x = grad_x.view(ctx.shape).to(ctx.dtype)
        return grad_x, None, None, *gate_grads, *up_grads, *down_grads
