"""Query, key and value heads from a hidden state, rotated, as one autograd function."""

from __future__ import annotations

from typing import Any

import torch

from dpo.engine.lean_linear import Branch, compute_dtype, project, project_backward, with_adapters


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
