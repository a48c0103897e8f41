"""The sizes of a decoder, whatever its config calls them: for forecasts of memory, which need them nearly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Shape:
    """Features of a layer's hidden state, of its MLP (of all experts a token takes), layers; heads and their size."""

    hidden: int
    inner: int
    layers: int
    heads: int
    key_heads: int
    head: int


INNER = ("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size", "d_inner", "d_ff", "inner_hidden_size")
HEADS = ("num_attention_heads", "num_heads", "n_head", "n_heads")
LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers")


def shape_of(config: Any) -> Shape:
    """Of a text config; where layers differ the largest counts, and what is missing is a decoder's usual."""
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    hidden = _largest(text, ("hidden_size", "n_embd", "d_model", "model_dim")) or 1024
    heads = _largest(text, HEADS) or 1
    experts = (_largest(text, ("moe_intermediate_size",)) or 0) * (
        _largest(text, ("num_experts_per_tok", "top_k")) or 1
    )
    return Shape(
        hidden=hidden,
        inner=max(_largest(text, INNER) or 4 * hidden, experts),
        layers=_largest(text, LAYERS) or 24,
        heads=heads,
        key_heads=_largest(text, ("num_key_value_heads", "num_kv_heads")) or heads,
        head=_largest(text, ("head_dim", "attention_head_dim")) or max(1, hidden // heads),
    )


def _largest(config: Any, names: tuple[str, ...]) -> int | None:
    for name in names:
        numbers = [number for value in _values(config, name) for number in _numbers(value)]
        if numbers:
            return max(numbers)
    return None


def _values(config: Any, name: str) -> list[Any]:
    """A setting of the model, or of each of its layers where it has none that all share (Gemma 4)."""
    try:
        return [getattr(config, name, None)]
    except RuntimeError:
        return [getattr(layer, name, None) for layer in config.per_layer_config]


def _numbers(value: Any) -> list[int]:
    found = value if isinstance(value, (list, tuple)) else [value]
    return [number for number in found if isinstance(number, int) and not isinstance(number, bool) and number > 0]
