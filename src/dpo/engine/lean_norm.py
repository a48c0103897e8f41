"""RMSNorm as one autograd function that keeps its input and one figure a row."""

from __future__ import annotations

from typing import Any

import torch


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
