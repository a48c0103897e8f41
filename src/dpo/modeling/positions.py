"""How long a sequence a model was made for."""

from __future__ import annotations

from typing import Any

# Their max_position_embeddings is that of the weights before the positions were stretched; others state the result.
STRETCHING = ("linear", "dynamic")


def positions(config: Any) -> int | None:
    """Positions of transformers' config of a causal model, stretched ones included; None where nothing bounds them."""
    config = config.get_text_config()
    if getattr(config, "alibi", False):
        return None
    most = getattr(config, "max_position_embeddings", None) or getattr(config, "max_seq_len", None)
    if most is None or most <= 0:  # XLNet says -1
        return None
    found = getattr(config, "rope_parameters", None) or {}
    # One scaling, or one for each type of layer: the whole reach of some is enough.
    ropes = [rope for rope in (found, *found.values()) if isinstance(rope, dict) and rope.get("factor")]
    return max([int(most), *(_reach(rope, most) for rope in ropes)])


def _reach(rope: dict[str, Any], most: int) -> int:
    if rope.get("rope_type", rope.get("type")) in STRETCHING:
        return int(most * rope["factor"])
    return int(rope.get("original_max_position_embeddings", 0) * rope["factor"])
