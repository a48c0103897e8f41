"""The gated MLP as one autograd function: it keeps x, gate and up, and makes the product of both again backward."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from dpo.engine.lean_linear import Branch, compute_dtype, project, project_backward, with_adapters

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
        flat = x.detach().reshape(-1, x.shape[-1]).to(compute_dtype(x))
        with torch.autocast(x.device.type, enabled=False):
            (gate, up), inner = project(flat, branches[:2])
            (out,), down_inner = project(_act(act, gate).mul_(up), branches[2:])
        ctx.save_for_backward(flat, gate, up, inner, down_inner, *adapters)
        ctx.act, ctx.branches, ctx.shape, ctx.dtype = act, branches, x.shape, x.dtype
        return out.view(x.shape[:-1] + out.shape[-1:])

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override]
        flat, gate, up, inner, down_inner, *adapters = ctx.saved_tensors
        branches = with_adapters(ctx.branches, adapters)
        grad = grad.reshape(-1, grad.shape[-1])
        with torch.autocast(grad.device.type, enabled=False):
            activated = _act(ctx.act, gate)
            grad_product, down_grads = project_backward([grad], activated * up, down_inner, branches[2:], True)
            assert grad_product is not None
            grad_up = activated.mul_(grad_product)
            grad_gate = _act_backward(ctx.act, grad_product.mul_(up), gate)
            grad_x, grads = project_backward([grad_gate, grad_up], flat, inner, branches[:2], ctx.needs_input_grad[0])
        if grad_x is not None:
            grad_x = grad_x.view(ctx.shape).to(ctx.dtype)
        return grad_x, None, None, *grads, *down_grads
