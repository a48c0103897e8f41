"""Packed attention on a CPU as one autograd function of plain matrix products, a tile of queries at a time.

Torch's CPU flash kernels do not use the bf16 matrix instructions, and their backward is several times slower than the
products it consists of. Here the scores of one tile stay in the cache. The backward needs their probabilities again:
those of short sequences are kept, those of long ones, which would take more memory than all else a layer keeps, are
made again. The query heads that share a key head are stacked into the rows of one product, which spares the expanded
copies of keys and values and sums their gradients by itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from dpo.engine.kernels.pairs import additive_mask

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dpo.engine.layout import PackedLayout

TILE = 1 << 18
"""Scores a tile, over all heads: half a megabyte in bf16, which a core's own cache holds."""
FEWEST_ROWS = 16
KEPT_KEYS = 512
"""Probabilities of sequences up to this many keys are kept for the backward."""


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
        kept = []
        for rows, parts in _sequences(layout):
            keys, values = _gather(key, parts), _gather(value, parts)
            for tile, seen, mask in _tiles(layout, rows, keys.shape[1], heads, window, query):
                probs = _probabilities(_fold(query, tile, kv_heads).mul(scale), keys[:, seen], mask)
                if keys.shape[1] <= KEPT_KEYS and any(ctx.needs_input_grad):
                    kept.append(probs)
                out[0, tile] = _unfold(torch.bmm(probs, values[:, seen]), heads).transpose(0, 1)
        ctx.save_for_backward(query, key, value, *kept)
        ctx.layout, ctx.scale, ctx.window = layout, scale, window
        return out

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override]
        query, key, value, *kept = ctx.saved_tensors
        heads, kv_heads, scale = query.shape[1], key.shape[1], ctx.scale
        grad, remembered = grad.transpose(1, 2), iter(kept)
        grad_query = torch.empty_like(query)
        # A prompt's keys get gradients from many tiles: added up in bf16 the small ones would be lost.
        exact = torch.float64 if query.dtype == torch.float64 else torch.float32
        grad_key, grad_value = torch.zeros_like(key, dtype=exact), torch.zeros_like(value, dtype=exact)
        for rows, parts in _sequences(ctx.layout):
            keys, values = _gather(key, parts), _gather(value, parts)
            for tile, seen, mask in _tiles(ctx.layout, rows, keys.shape[1], heads, ctx.window, query):
                queries, grads = _fold(query, tile, kv_heads).mul(scale), _fold(grad, tile, kv_heads)
                short = keys.shape[1] <= KEPT_KEYS
                probs = next(remembered) if short else _probabilities(queries, keys[:, seen], mask)
                _spread(grad_value, parts, seen, torch.bmm(probs.transpose(1, 2), grads))
                slope = torch.bmm(grads, values[:, seen].transpose(1, 2))
                slope = torch._softmax_backward_data(slope, probs, -1, slope.dtype)
                grad_query[0, :, tile] = _unfold(torch.bmm(slope, keys[:, seen]), heads)
                _spread(grad_key, parts, seen, torch.bmm(slope.transpose(1, 2), queries))
        return grad_query.mul_(scale), grad_key.to(key.dtype), grad_value.to(value.dtype), None, None, None


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
    """(rows of a tile, the keys it sees, mask of 0 and -inf for the last of them) of one sequence.

    All rows see all keys before those of the mask.
    """
    count = rows.stop - rows.start
    before = length - count
    step = max(FEWEST_ROWS, TILE // (heads * length))
    for start in range(0, count, step):
        end = min(count, start + step)
        first = 0 if window is None else max(0, before + start - window + 1)
        seen = slice(first, before + end)
        masked = end - start if window is None else seen.stop - first
        mask = additive_mask(layout, end - start, masked, window, like)
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


def _spread(total: torch.Tensor, parts: list[slice], seen: slice, gradient: torch.Tensor) -> None:
    """Add the [Hkv, K, D] gradient of the keys `seen` of a sequence to their rows in [1, Hkv, T, D]."""
    before = 0
    for part in parts:
        length = part.stop - part.start
        first, last = max(seen.start, before), min(seen.stop, before + length)
        if first < last:
            shift = part.start - before
            total[0, :, first + shift : last + shift] += gradient[:, first - seen.start : last - seen.start]
        before += length


def _probabilities(queries: torch.Tensor, keys: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """[Hkv, groups * tile, D], [Hkv, K, D], mask of the last keys -> [Hkv, groups * tile, K]."""
    scores = torch.bmm(queries, keys.transpose(1, 2))
    rows, masked = mask.shape
    scores.view(-1, rows, scores.shape[-1])[..., scores.shape[-1] - masked :].add_(mask)
    return torch.softmax(scores, -1)  # in fp32 inside
