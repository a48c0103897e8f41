"""How long a sequence a model was made for."""

from __future__ import annotations

from typing import Any

# Their max_position_embeddings is that of the weights before the positions were stretched; others state the result.
STRETCHING = ("linear", "dynamic")
BY_LONGEST = ("dynamic", "longrope")


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


def steady(config: Any) -> int | None:
    """Tokens up to which what a position means hangs on nothing else; None where it never hangs on anything.

    Dynamic NTK and LongRoPE (arXiv:2402.13753) turn every token of a batch by the longest sequence in it once that is
    longer: then a log-prob hangs on what it was computed beside.
    """
    config = config.get_text_config()
    found = getattr(config, "rope_parameters", None) or {}
    bounds = []
    for rope in (found, *found.values()):
        if isinstance(rope, dict) and rope.get("rope_type", rope.get("type")) in BY_LONGEST:
            own = rope.get("original_max_position_embeddings")
            bounds.append(
                own or getattr(config, "original_max_position_embeddings", None) or config.max_position_embeddings
            )
    return min(map(int, bounds), default=None)


def _reach(rope: dict[str, Any], most: int) -> int:
    if rope.get("rope_type", rope.get("type")) in STRETCHING:
        return int(most * rope["factor"])
    return int(rope.get("original_max_position_embeddings", 0) * rope["factor"])
