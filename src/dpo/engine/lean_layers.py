"""What a layer keeps for its backward, made small: norm, gated MLP and rotated heads, one autograd function each.

The norm keeps its input and one figure a row; the MLP keeps x, gate and up, and makes the product of both again
backward; the heads keep what their adapters need.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from dpo.engine.lean_linear import Branch, compute_dtype, project, project_backward, with_adapters


class LeanNorm(torch.autograd.Function):
    """x / rms(x) * w in fp32 inside, as transformers computes it.

    `shifted` is Gemma's form: scale 1 + w, and rounding to x's dtype after the scale instead of before it.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, eps: float, shifted: bool) -> torch.Tensor:
        exact = x.detach().float()
        rate = torch.rsqrt(exact.square().mean(-1, keepdim=True).add_(eps))
        normed = exact * rate
        ctx.save_for_backward(x, weight, rate)
        ctx.shifted = shifted
        if shifted:
            return normed.mul_(1.0 + weight.float()).to(x.dtype)
        if weight.dtype == x.dtype == torch.float32:
            return normed.mul_(weight)
        return weight * normed.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override]
        x, weight, rate = ctx.saved_tensors
        scale = weight.float() + 1.0 if ctx.shifted else weight.float()
        exact = grad.float()
        normed = x.float() * rate
        grad_x = grad_weight = None
        if ctx.needs_input_grad[1]:
            grad_weight = (exact * normed).flatten(0, -2).sum(0).to(weight.dtype)
        if ctx.needs_input_grad[0]:
            scaled = exact * scale
            along = torch.linalg.vecdot(scaled, normed).div_(x.shape[-1]).unsqueeze(-1)
            grad_x = scaled.addcmul_(normed, along, value=-1.0).mul_(rate).to(x.dtype)
        return grad_x, grad_weight, None, None


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


class LeanHeads(torch.autograd.Function):
    """[1, T, H] -> rotated query [1, Hq, T, D] and key [1, Hkv, T, D], value [1, Hkv, T, D].

    Gradients to x and to the adapters. `cos` and `sin` are [1, T, D], their two halves alike, as transformers makes
    them; the rotation is x cos + swap(x) sin, where swap exchanges the halves of a head and sin has a
    minus in its first half (RoFormer, arXiv:2104.09864, eq. 34, with the pairs half a head apart).
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        branches: tuple[Branch, Branch, Branch],
        *adapters: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        flat = x.detach().reshape(-1, x.shape[-1]).to(compute_dtype(x))
        with torch.autocast(x.device.type, enabled=False):
            outs, inner = project(flat, branches)
            cos, sin = cos[0].to(flat.dtype), sin[0].to(flat.dtype, copy=True)
            size = cos.shape[-1]
            sin[:, : size // 2].neg_()
            # Heads first: products with one row of cos and sin a token are several times faster that way.
            query, key = (_rotated(_heads(out, size), cos, sin, 1.0) for out in outs[:2])
        ctx.save_for_backward(flat if inner is not None else None, inner, cos, sin, *adapters)
        ctx.branches, ctx.shape, ctx.dtype = branches, x.shape, x.dtype
        return query.unsqueeze(0), key.unsqueeze(0), _heads(outs[2], size).unsqueeze(0)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override]
        flat, inner, cos, sin, *adapters = ctx.saved_tensors
        with torch.autocast(cos.device.type, enabled=False):
            # The inverse of a rotation turns the other way.
            turned = [_rotated(grad[0], cos, sin, -1.0) for grad in grads[:2]]
            rows = [heads.transpose(0, 1).flatten(1) for heads in (*turned, grads[2][0])]
            grad_x, adapter_grads = project_backward(
                rows, flat, inner, with_adapters(ctx.branches, adapters), ctx.needs_input_grad[0]
            )
        if grad_x is not None:
            grad_x = grad_x.view(ctx.shape).to(ctx.dtype)
        return grad_x, None, None, None, *adapter_grads


def _heads(rows: torch.Tensor, size: int) -> torch.Tensor:
    """[T, heads * D] -> [heads, T, D]."""
    return rows.view(rows.shape[0], -1, size).transpose(0, 1)


def _rotated(heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, direction: float) -> torch.Tensor:
    """[heads, T, D] turned by the angles of `cos` and `sin` [T, D]."""
    heads = heads.contiguous()
    return (heads * cos).addcmul_(heads.roll(heads.shape[-1] // 2, -1), sin, value=direction)
