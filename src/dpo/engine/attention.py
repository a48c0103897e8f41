"""Attention over packed rows: rejected sees its prompt and itself, never chosen.

Registered with transformers under one name for each stock implementation it stands in for. A call without a packed
layout (generation, padded batches) goes to that stock implementation, masks included, so installing it changes
nothing else. The name stays set because activation checkpointing runs attention again during the backward.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import torch

from dpo.engine.kernels import cpu, cuda
from dpo.engine.kernels.pairs import by_pair
from dpo.engine.support import unwrapped
from dpo.modeling.shape import shape_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from dpo.engine.layout import PackedLayout

PAIR_BY_PAIR = "pair by pair"

STAND_INS = {"sdpa": "dpo_packed_sdpa", "eager": "dpo_packed_eager"}
"""Stock implementation -> ours."""


def register() -> None:
    """Make our implementations known to transformers; doing it twice does no harm."""
    from transformers import AttentionInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    for stock, ours in STAND_INS.items():
        AttentionMaskInterface.register(ours, ALL_MASK_ATTENTION_FUNCTIONS[stock])
        stock_forward = ALL_ATTENTION_FUNCTIONS[stock] if stock != "eager" else _eager
        AttentionInterface.register(ours, _with_fallback(stock_forward))


def no_mask(device: torch.device) -> torch.Tensor:
    """A 4-D mask that transformers hands through untouched instead of building one over T x T; it is never read."""
    return torch.ones((1, 1, 1, 1), dtype=torch.bool, device=device)


def path(model: torch.nn.Module, dtype: torch.dtype) -> str:
    """Names what computes here in the reference cache's key: log-probs of one implementation are no reference for
    another. Change it when results change in their last bits."""
    return f"packed-{_kernel(model, dtype)[0]}-lean-heads"


def describe_kernel(model: torch.nn.Module, dtype: torch.dtype) -> str:
    """Which of the implementations behind `packed_attention` serves `model` on its device in `dtype`, and why no
    faster one where there is one. Raises torch.OutOfMemoryError where there is no room to try them."""
    name, refused = _kernel(model, dtype)
    return name + (f" because {'; '.join(refused)}" if refused else "")


def _kernel(model: torch.nn.Module, dtype: torch.dtype) -> tuple[str, tuple[str, ...]]:
    base = unwrapped(model)
    config: Any = base.config.get_text_config()
    device: torch.device = next(base.get_input_embeddings().parameters()).device
    if getattr(config, "attention_dropout", 0.0):
        return PAIR_BY_PAIR, ("attention dropout",)
    if device.type == "cpu":
        return "tiles", ()
    key_size = getattr(config, "qk_head_dim", None) or shape_of(config).head
    if (getattr(config, "v_head_dim", None) or key_size) != key_size:
        return PAIR_BY_PAIR, ("values of another size than keys",)
    if device.type != "cuda" or dtype not in cuda.HALVES:
        return PAIR_BY_PAIR, (str(dtype).removeprefix("torch.") if device.type == "cuda" else device.type,)
    found = cuda.probe(device.index or 0, dtype, key_size)
    return found.name or PAIR_BY_PAIR, found.refused


def _eager(module: torch.nn.Module, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
    return sys.modules[type(module).__module__].eager_attention_forward(module, *args, **kwargs)


def _with_fallback(stock_forward: Callable[..., Any]) -> Callable[..., Any]:
    def forward(
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        *,
        packed: PackedLayout | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        if packed is None:
            return stock_forward(module, query, key, value, attention_mask, **kwargs)
        for name in ("softcap", "s_aux", "position_bias"):
            if kwargs.get(name) is not None:
                raise ValueError(f"packed attention cannot honour {name!r}; use hardware.engine=plain")
        return (
            packed_attention(
                query,
                key,
                value,
                packed,
                scaling=kwargs.get("scaling"),
                sliding_window=kwargs.get("sliding_window"),
                dropout=kwargs.get("dropout", 0.0),
            ),
            None,
        )

    return forward


def packed_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    layout: PackedLayout,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    dropout: float = 0.0,
) -> torch.Tensor:
    """Causal attention of each pair's two sequences, computed on their packed row.

    Args:
        query: [1, Hq, T, D]; key, value: [1, Hkv, T, D], rotated by `layout.position_ids`.
        scaling: of the scores, default D ** -0.5.
        sliding_window: a token sees itself and the `sliding_window - 1` tokens before it; None sees all.
        dropout: probability of dropping an attention weight.

    Returns:
        [1, T, Hq, D].
    """
    if sliding_window is not None and sliding_window >= layout.longest:
        sliding_window = None
    if torch.is_autocast_enabled(query.device.type):
        # Rotation can leave query and key in fp32 beside a bf16 value; SDPA would cast them, our kernels have to.
        kind = torch.get_autocast_dtype(query.device.type)
        query, key, value = query.to(kind), key.to(kind), value.to(kind)
    if cuda.usable(query, dropout):
        return cuda.packed_attention(query, key, value, layout, scaling, sliding_window)
    if cpu.usable(query, dropout):
        return cpu.TiledPairs.apply(query, key, value, layout, scaling, sliding_window)
    return by_pair(query, key, value, layout, scaling, sliding_window, dropout)
