"""Packed attention on a CPU as one autograd function over torch's CPU flash kernels.

Autograd over slices would keep an expanded copy of every prompt's keys and values for each side. Here only query,
key, value, the output and one figure a row and head are kept; the copies live for one pair at a time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from dpo.training.packed.attention_pairs import mask_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dpo.training.packed.layout import PackedLayout


def usable(query: torch.Tensor, dropout: float) -> bool:
    """True for dense CPU tensors without dropout where the kernels exist."""
    return query.device.type == "cpu" and dropout == 0.0 and hasattr(torch.ops.aten, _FORWARD)


_FORWARD = "_scaled_dot_product_flash_attention_for_cpu"
_BACKWARD = "_scaled_dot_product_flash_attention_for_cpu_backward"


def _sides(layout: PackedLayout) -> Iterator[tuple[slice, list[slice], int, int]]:
    """(rows of the queries, rows of the keys, number of queries, number of keys) of every sequence."""
    start = 0
    for prompt, chosen, rejected in layout.lengths:
        middle, end = start + prompt + chosen, start + prompt + chosen + rejected
        yield slice(start, middle), [slice(start, middle)], prompt + chosen, prompt + chosen
        yield slice(middle, end), [slice(start, start + prompt), slice(middle, end)], rejected, prompt + rejected
        start = end


def _gather(rows: torch.Tensor, parts: list[slice], groups: int) -> torch.Tensor:
    """[1, Hkv, T, D] -> [1, Hkv * groups, K, D] of the rows in `parts`."""
    picked = torch.cat([rows[:, :, part] for part in parts], dim=2) if len(parts) > 1 else rows[:, :, parts[0]]
    return picked.repeat_interleave(groups, dim=1) if groups > 1 else picked


class FlashPairs(torch.autograd.Function):
    """[1, Hq, T, D], [1, Hkv, T, D], [1, Hkv, T, D] -> [1, T, Hq, D]."""

    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        layout: PackedLayout,
        scaling: float | None,
        window: int | None,
    ) -> torch.Tensor:
        heads, total, size = query.shape[1:]
        groups = heads // key.shape[1]
        out = torch.empty((1, total, heads, size), dtype=query.dtype)
        sums = []
        for rows, parts, count, length in _sides(layout):
            mask, causal = mask_of(layout, count, length, window, query)
            part, log_sum = getattr(torch.ops.aten, _FORWARD)(
                query[:, :, rows],
                _gather(key, parts, groups),
                _gather(value, parts, groups),
                0.0,
                causal,
                attn_mask=mask,
                scale=scaling,
            )
            out[:, rows] = part.transpose(1, 2)
            sums.append(log_sum)
        ctx.save_for_backward(query, key, value, out, *sums)
        ctx.layout, ctx.scaling, ctx.window = layout, scaling, window
        return out

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override]
        query, key, value, out, *sums = ctx.saved_tensors
        kv_heads = key.shape[1]
        groups = query.shape[1] // kv_heads
        grad_query = torch.empty_like(query)
        grad_key, grad_value = torch.zeros_like(key), torch.zeros_like(value)
        for (rows, parts, count, length), log_sum in zip(_sides(ctx.layout), sums, strict=True):
            mask, causal = mask_of(ctx.layout, count, length, ctx.window, query)
            grads = getattr(torch.ops.aten, _BACKWARD)(
                grad[:, rows].transpose(1, 2),
                query[:, :, rows],
                _gather(key, parts, groups),
                _gather(value, parts, groups),
                out[:, rows].transpose(1, 2),
                log_sum,
                0.0,
                causal,
                attn_mask=mask,
                scale=ctx.scaling,
            )
            grad_query[:, :, rows] = grads[0]
            for total, found in ((grad_key, grads[1]), (grad_value, grads[2])):
                if groups > 1:
                    found = found.reshape(1, kv_heads, groups, length, -1).sum(2)
                start = 0
                for part in parts:
                    total[:, :, part] += found[:, :, start : start + part.stop - part.start]
                    start += part.stop - part.start
        return grad_query, grad_key, grad_value, None, None, None
