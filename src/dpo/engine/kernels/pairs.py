"""Packed attention with SDPA, pair by pair: every device and dtype, no quadratic work beyond each sequence."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn.functional import scaled_dot_product_attention

if TYPE_CHECKING:
    from dpo.engine.layout import PackedLayout


def by_pair(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    layout: PackedLayout,
    scaling: float | None,
    sliding_window: int | None,
    dropout: float,
) -> torch.Tensor:
    """As `dpo.engine.attention.packed_attention`."""
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    query_parts = query.split([n for p, c, r in layout.lengths for n in (p + c, r)], dim=2)
    key_value = torch.stack((key, value)).split([n for lengths in layout.lengths for n in lengths], dim=3)
    outputs = []
    for index, (prompt, chosen, rejected) in enumerate(layout.lengths):
        shared, own, other = key_value[3 * index : 3 * index + 3]
        for queries, keys_values, length in (
            (query_parts[2 * index], torch.cat((shared, own), dim=3), prompt + chosen),
            (query_parts[2 * index + 1], torch.cat((shared, other), dim=3), prompt + rejected),
        ):
            count = queries.shape[2]
            if count == 0:
                continue
            mask, causal = mask_of(layout, count, length, sliding_window, queries)
            outputs.append(
                scaled_dot_product_attention(
                    queries,
                    keys_values[0],
                    keys_values[1],
                    attn_mask=mask,
                    is_causal=causal,
                    dropout_p=dropout,
                    scale=scaling,
                )
            )
    return torch.cat(outputs, dim=2).transpose(1, 2)


def mask_of(
    layout: PackedLayout, count: int, length: int, window: int | None, like: torch.Tensor
) -> tuple[torch.Tensor | None, bool]:
    """(mask, is_causal) for SDPA, where the last `count` of `length` tokens look at all of them."""
    if (window is None or window >= length) and count == length:
        return None, True
    return additive_mask(layout, count, length, window, like), False


def additive_mask(
    layout: PackedLayout, count: int, length: int, window: int | None, like: torch.Tensor
) -> torch.Tensor:
    """[count, length] of 0 and -inf in the dtype of `like`, made once for all layers: kernels would convert a boolean
    one at each."""
    if window is not None and window >= length:
        window = None
    name = (count, length, window, like.dtype, like.device)
    mask = layout.cache.get(name)
    if mask is None:
        rows = torch.arange(length - count, length, device=like.device).unsqueeze(1)
        columns = torch.arange(length, device=like.device).unsqueeze(0)
        seen = columns <= rows
        if window is not None:
            seen &= rows - columns < window
        mask = torch.zeros(seen.shape, dtype=like.dtype, device=like.device).masked_fill_(~seen, -torch.inf)
        layout.cache[name] = mask
    assert isinstance(mask, torch.Tensor)
    return mask
