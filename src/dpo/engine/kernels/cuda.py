"""Packed attention on CUDA: one variable-length flash call a layer, FlexAttention where that is missing."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, partial
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import torch

from dpo.errors import is_out_of_memory

if TYPE_CHECKING:
    from dpo.engine.layout import PackedLayout

HALVES = (torch.bfloat16, torch.float16)


def usable(query: torch.Tensor, dropout: float) -> bool:
    """True where a kernel of this file was seen to agree with a plain softmax on this device.

    fp32 and fp64, dropout, odd head sizes and devices that fail the check use SDPA pair by pair.
    """
    if query.device.type != "cuda" or query.dtype not in HALVES or dropout > 0.0:
        return False
    return probe(query.device.index or 0, query.dtype, query.shape[-1]).name is not None


def packed_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    layout: PackedLayout,
    scaling: float | None,
    sliding_window: int | None,
) -> torch.Tensor:
    """As `dpo.engine.attention.packed_attention`, for bf16 and fp16 on CUDA."""
    if probe(query.device.index or 0, query.dtype, query.shape[-1]).name == "varlen":
        return _varlen(query, key, value, layout, scaling, sliding_window)
    return _flex(query, key, value, layout, scaling, sliding_window)


def _varlen(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    layout: PackedLayout,
    scaling: float | None,
    sliding_window: int | None,
) -> torch.Tensor:
    from torch.nn.attention.varlen import varlen_attn

    rows, query_ends, key_ends, max_query, max_key = _sequences(layout, query.device)
    # The mask is aligned bottom-right: the R queries of a rejected side are the last R of its P + R keys.
    out = varlen_attn(
        query[0].transpose(0, 1).contiguous(),
        key[0].transpose(0, 1).index_select(0, rows),
        value[0].transpose(0, 1).index_select(0, rows),
        query_ends,
        key_ends,
        max_query,
        max_key,
        scale=scaling,
        window_size=(-1, 0) if sliding_window is None else (sliding_window - 1, 0),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    assert isinstance(out, torch.Tensor)
    return out.unsqueeze(0)


def _sequences(layout: PackedLayout, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, int, int]:
    """Rows of the keys [P, C], [P, R], ... and the cumulative query and key lengths, once per layout and device."""
    name = ("varlen", device)
    if name not in layout.cache:
        rows: list[int] = []
        queries: list[int] = []
        keys: list[int] = []
        start = 0
        for prompt, chosen, rejected in layout.lengths:
            rows += range(start, start + prompt + chosen)
            queries.append(prompt + chosen)
            keys.append(prompt + chosen)
            if rejected:
                end = start + prompt + chosen + rejected
                rows += [*range(start, start + prompt), *range(end - rejected, end)]
                queries.append(rejected)
                keys.append(prompt + rejected)
            start += prompt + chosen + rejected
        layout.cache[name] = (
            torch.tensor(rows, device=device),
            torch.tensor([0, *accumulate(queries)], dtype=torch.int32, device=device),
            torch.tensor([0, *accumulate(keys)], dtype=torch.int32, device=device),
            max(queries),
            max(keys),
        )
    found: Any = layout.cache[name]
    return found


def _flex(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    layout: PackedLayout,
    scaling: float | None,
    sliding_window: int | None,
) -> torch.Tensor:
    from torch.nn.attention.flex_attention import create_block_mask

    name = ("flex", sliding_window, query.device)
    if name not in layout.cache:
        device = query.device
        lengths = layout.lengths
        kinds = torch.tensor([k for sides in lengths for k, n in enumerate(sides) for _ in range(n)], device=device)
        pair = torch.tensor([i for i, sides in enumerate(lengths) for _ in range(sum(sides))], device=device)
        position = layout.position_ids[0].to(device)

        def sees(batch: Any, head: Any, row: Any, column: Any) -> Any:
            # A prompt token (kind 0) is seen by both sides; other tokens only by their own side.
            same = (pair[row] == pair[column]) & ((kinds[column] == 0) | (kinds[column] == kinds[row]))
            causal = position[column] <= position[row]
            if sliding_window is None:
                return same & causal
            return same & causal & (position[row] - position[column] < sliding_window)

        total = query.shape[2]
        layout.cache[name] = create_block_mask(sees, None, None, total, total, device=str(device))
    block_mask: Any = layout.cache[name]
    out = _compiled_flex()(
        query, key, value, block_mask=block_mask, scale=scaling, enable_gqa=query.shape[1] != key.shape[1]
    )
    return out.transpose(1, 2)


@cache
def _compiled_flex() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True)


@dataclass(frozen=True)
class Probe:
    """Which kernel serves, None for none, and what was found about those tried before it."""

    name: str | None
    refused: tuple[str, ...] = ()


@cache
def probe(device_index: int, dtype: torch.dtype, head_size: int) -> Probe:
    """The first kernel that agrees with SDPA on a small packed row of this device, dtype and head size.

    Out of memory says nothing about a kernel: it is raised, and the next call asks again.
    """
    refused: list[str] = []
    for name, attend in (("varlen", _varlen), ("flex", _flex)):
        try:
            if _agrees(attend, torch.device("cuda", device_index), dtype, head_size):
                return Probe(name, tuple(refused))
            refused.append(f"{name} does not agree with a plain softmax")
        except Exception as error:
            if is_out_of_memory(error):
                raise
            # Any other failure of an optional kernel means: do not use it, and say so.
            said = str(error).splitlines()
            refused.append(f"{name}: {type(error).__name__}{f' ({said[0][:80]})' if said else ''}")
    return Probe(None, tuple(refused))


def _agrees(attend: Any, device: torch.device, dtype: torch.dtype, head_size: int) -> bool:
    from dpo.engine.kernels.pairs import by_pair
    from dpo.engine.layout import PackedLayout

    exact: Any = partial(by_pair, dropout=0.0)

    lengths = ((5, 3, 6), (4, 0, 3), (1, 9, 1), (6, 2, 0), (140, 20, 33))
    total = sum(map(sum, lengths))
    positions = [n for p, c, r in lengths for n in (*range(p + c), *range(p, p + r))]
    empty = torch.zeros(0, dtype=torch.long, device=device)
    position_ids = torch.tensor([positions], device=device)
    generator = torch.Generator(device=device).manual_seed(0)
    shapes = ((1, 4, total, head_size), (1, 2, total, head_size), (1, 2, total, head_size))
    inputs = [torch.randn(s, generator=generator, device=device, dtype=dtype) for s in shapes]
    weight = torch.randn((1, total, 4, head_size), generator=generator, device=device, dtype=dtype)
    with torch.enable_grad(), torch.autocast("cuda", enabled=False):
        for window in (None, 4):
            results = []
            for function, kind in ((attend, dtype), (exact, torch.float32)):
                layout = PackedLayout(position_ids, position_ids, empty, empty, empty, lengths, ())
                leaves = [x.detach().to(kind).requires_grad_() for x in inputs]
                out = function(*leaves, layout, None, window)
                results.append([out.detach(), *torch.autograd.grad((out * weight.to(kind)).sum(), leaves)])
            for mine, truth in zip(*results, strict=True):
                if not torch.allclose(mine.float(), truth, rtol=0.05, atol=0.05 * float(truth.std())):
                    return False
    return True
