"""Packed attention on a CPU as one autograd function of plain matrix products, a tile of queries at a time.

Torch's CPU flash kernels do not use the bf16 matrix instructions, and their backward is several times slower than the
products it consists of. Here the scores of one tile stay in the cache and are made again in the backward, so nothing
but query, key, value is kept. The query heads that share a key head are stacked into the rows of one product, which
spares the expanded copies of keys and values and sums their gradients by itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from dpo.training.packed.attention_pairs import additive_mask

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dpo.training.packed.layout import PackedLayout

TILE = 1 << 18
"""Scores a tile, over all heads: half a megabyte in bf16, which a core's own cache holds."""
FEWEST_ROWS = 16


def usable(query: torch.Tensor, dropout: float) -> bool:
    """True for CPU tensors without dropout."""
    return query.device.type == "cpu" and dropout == 0.0


class TiledPairs(torch.autograd.Function):
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
        kv_heads = key.shape[1]
        scale = size**-0.5 if scaling is None else scaling
        out = torch.empty((1, total, heads, size), dtype=query.dtype)
        for rows, parts in _sequences(layout):
            keys, values = _gather(key, parts), _gather(value, parts)
            for tile, seen, mask in _tiles(layout, rows, keys.shape[1], heads, window, query):
                probs = _probabilities(_fold(query, tile, kv_heads), keys[:, seen], mask, scale)
                out[0, tile] = _unfold(torch.bmm(probs, values[:, seen]), heads).transpose(0, 1)
        ctx.save_for_backward(query, key, value)
        ctx.layout, ctx.scale, ctx.window = layout, scale, window
        return out

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override]
        query, key, value = ctx.saved_tensors
        heads, kv_heads, scale = query.shape[1], key.shape[1], ctx.scale
        grad = grad.transpose(1, 2)
        grad_query = torch.empty(query.shape, dtype=query.dtype)
        # A prompt's keys get gradients from many tiles: added up in bf16 the small ones would be lost.
        exact = torch.float64 if query.dtype == torch.float64 else torch.float32
        grad_key, grad_value = torch.zeros(key.shape, dtype=exact), torch.zeros(value.shape, dtype=exact)
        for rows, parts in _sequences(ctx.layout):
            keys, values = _gather(key, parts), _gather(value, parts)
            key_total = torch.zeros(keys.shape, dtype=exact)
            value_total = torch.zeros(values.shape, dtype=exact)
            for tile, seen, mask in _tiles(ctx.layout, rows, keys.shape[1], heads, ctx.window, query):
                queries, grads = _fold(query, tile, kv_heads), _fold(grad, tile, kv_heads)
                probs = _probabilities(queries, keys[:, seen], mask, scale)
                value_total[:, seen] += torch.bmm(probs.transpose(1, 2), grads)
                slope = torch.bmm(grads, values[:, seen].transpose(1, 2))
                slope = torch._softmax_backward_data(slope, probs, -1, slope.dtype).mul_(scale)
                grad_query[0, :, tile] = _unfold(torch.bmm(slope, keys[:, seen]), heads)
                key_total[:, seen] += torch.bmm(slope.transpose(1, 2), queries)
            start = 0
            for part in parts:
                length = part.stop - part.start
                grad_key[0, :, part] += key_total[:, start : start + length]
                grad_value[0, :, part] += value_total[:, start : start + length]
                start += length
        return grad_query, grad_key.to(key.dtype), grad_value.to(value.dtype), None, None, None


def _sequences(layout: PackedLayout) -> Iterator[tuple[slice, list[slice]]]:
    """(rows of the queries, rows of the keys) of every sequence; the queries are the last of the keys."""
    start = 0
    for prompt, chosen, rejected in layout.lengths:
        middle, end = start + prompt + chosen, start + prompt + chosen + rejected
        yield slice(start, middle), [slice(start, middle)]
        yield slice(middle, end), [slice(start, start + prompt), slice(middle, end)]
        start = end


def _tiles(
    layout: PackedLayout, rows: slice, length: int, heads: int, window: int | None, like: torch.Tensor
) -> Iterator[tuple[slice, slice, torch.Tensor]]:
    """(rows of a tile, the keys it sees, [queries, keys] mask of 0 and -inf) of one sequence."""
    count = rows.stop - rows.start
    before = length - count
    step = max(FEWEST_ROWS, TILE // (heads * length))
    for start in range(0, count, step):
        end = min(count, start + step)
        first = 0 if window is None else max(0, before + start - window + 1)
        seen = slice(first, before + end)
        mask = additive_mask(layout, end - start, seen.stop - first, window, like)
        yield slice(rows.start + start, rows.start + end), seen, mask


def _gather(rows: torch.Tensor, parts: list[slice]) -> torch.Tensor:
    """[1, Hkv, T, D] -> [Hkv, K, D] of the rows in `parts`."""
    return torch.cat([rows[0, :, part] for part in parts], dim=1)


def _fold(rows: torch.Tensor, tile: slice, kv_heads: int) -> torch.Tensor:
    """[1, Hq, T, D] -> [Hkv, (Hq / Hkv) * tile, D]: query heads with the same keys below each other."""
    return rows[0, :, tile].reshape(kv_heads, -1, rows.shape[-1])


def _unfold(rows: torch.Tensor, heads: int) -> torch.Tensor:
    """[Hkv, (Hq / Hkv) * tile, D] -> [Hq, tile, D]."""
    return rows.view(heads, -1, rows.shape[-1])


def _probabilities(queries: torch.Tensor, keys: torch.Tensor, mask: torch.Tensor, scale: float) -> torch.Tensor:
    """[Hkv, groups * tile, D], [Hkv, K, D], [tile, K] -> [Hkv, groups * tile, K]; softmax in fp32 inside."""
    scores = torch.bmm(queries * scale, keys.transpose(1, 2))
    scores.view(-1, *mask.shape).add_(mask)
    return torch.softmax(scores, -1)
