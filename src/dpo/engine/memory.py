"""How many tokens a micro-batch may hold in the memory at hand, and whether that takes activation checkpointing."""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from dpo.engine.budget import cost
from dpo.engine.host_memory import free_host_memory
from dpo.engine.kernels.cpu import KEPT_KEYS
from dpo.engine.support import unwrapped
from dpo.modeling.shape import shape_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dpo.data.pair import TokenPair

ENOUGH = {"cpu": 1024, "cuda": 16384}
"""Tokens at which matrix products run at full speed: a larger micro-batch costs memory and gains nothing."""
SHARE = {"cpu": 0.5, "cuda": 0.85}
"""Part of the free memory to plan with; on a CPU other programs live in the same memory."""
MARGIN = 1.3
"""Allocator overhead and short-lived buffers, over what `bytes_per_token` counts."""
SMALLEST = 64


@dataclass(frozen=True)
class MemoryPlan:
    """What a step is cut into, and the line that says so."""

    token_budget: int
    activation_checkpointing: bool
    line: str


def bytes_per_token(config: Any, itemsize: int, *, engine: str, checkpointing: bool, kept_keys: int = 0) -> int:
    """Bytes that the forward of one token keeps for its backward.

    Args:
        config: of a decoder; what it does not say is taken to be as usual.
        itemsize: bytes of an activation (2 for bf16, 4 for fp32).
        engine: packed, with its lean functions, or plain.
        checkpointing: keep one hidden state a layer, and one layer in full.
        kept_keys: attention probabilities that the packed engine keeps a token and head.
    """
    shape = shape_of(config)
    hidden, inner, layers = shape.hidden, shape.inner, shape.layers
    queries, keys = shape.heads * shape.head, 2 * shape.key_heads * shape.head
    if engine == "packed":
        layer = 4 * hidden + 3 * queries + keys + 2 * inner + shape.heads * kept_keys
    else:
        # PEFT's and transformers' own functions keep casts, products and expanded keys and values as well.
        layer = 12 * hidden + 9 * queries + 2 * keys + 5 * inner
    working = 4 * inner + 4 * hidden
    kept = layers * hidden + layer if checkpointing else layers * layer
    # Statistics and gradients of the LM head are fp32; TRL's tiles of logits exist for every token of a plain batch.
    logits = 4 * 2 * hidden if engine == "packed" else 4 * 4 * 32768
    return int(MARGIN * itemsize * (kept + working) + logits)


def free_memory(device: torch.device) -> int:
    """Bytes that could be allocated on `device` now; on a CPU within the limit of its container, if it has one."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return free_host_memory()


def plan(
    model: torch.nn.Module,
    pairs: Sequence[TokenPair],
    *,
    engine: str,
    dtype: torch.dtype,
    free: int | None = None,
    token_budget: int | None = None,
    checkpointing: bool | None = None,
    together: int = 1,
) -> MemoryPlan:
    """The token budget of a micro-batch, and whether to checkpoint activations.

    Checkpointing recomputes every forward, so it is chosen only when the longest pair would not fit otherwise. The
    budget is a power of two where memory allows less than enough, so that two runs on one machine agree.

    Args:
        pairs: all the run will read; the longest decides what has to fit.
        engine: packed or plain.
        dtype: of the activations.
        free: bytes to plan with, default `free_memory`.
        token_budget, checkpointing: fixed by the user; None decides here.
        together: pairs that must share a forward; the longest so many of `pairs` then decide.
    """
    base = unwrapped(model)
    device: torch.device = next(base.get_input_embeddings().parameters()).device
    kind = device.type if device.type in ENOUGH else "cpu"
    room = int(SHARE[kind] * (free_memory(device) if free is None else free))
    itemsize = torch.empty((), dtype=dtype).element_size()
    config: Any = base.config.get_text_config()
    longest = cost(heapq.nlargest(together, pairs, key=lambda pair: cost([pair], engine)), engine) or 1

    # Half of a sequence's keys, on average.
    kept = min(KEPT_KEYS, longest) // 2 if kind == "cpu" else 0

    def fits(with_checkpointing: bool) -> int:
        return room // bytes_per_token(
            config, itemsize, engine=engine, checkpointing=with_checkpointing, kept_keys=kept
        )

    use = fits(False) < max(longest, token_budget or 0) if checkpointing is None else checkpointing
    possible = fits(use)
    if token_budget is None:
        enough = max(ENOUGH[kind], longest)
        token_budget = enough if possible >= enough else 1 << max(SMALLEST, possible).bit_length() - 1
    what = "pair" if together == 1 else f"{together} pairs"
    line = (
        f"{token_budget} tokens a micro-batch (longest {what} {longest}, {room / 2**30:.1f} GiB to use), "
        f"activation checkpointing {'on' if use else 'off'}"
    )
    return MemoryPlan(token_budget, use, line)
