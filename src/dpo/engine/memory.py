"""How many tokens a micro-batch may hold in the memory at hand, and whether that takes activation checkpointing."""

from __future__ import annotations

import functools
import heapq
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from dpo.engine.budget import cost
from dpo.engine.kernels.cpu import KEPT_KEYS
from dpo.engine.support import unwrapped
from dpo.modeling.host_memory import free_host_memory
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
SPACE = 1.05
"""What lies unused between blocks, over what a measured step needs."""
AMPLE = 6
"""No step is known to need as many times what `bytes_per_token` says: with dropout 2.3, full fine-tuning 2.1."""
SMALLEST = 64


@dataclass(frozen=True)
class Need:
    """What a micro-batch takes, measured: `fixed` bytes and so many a token, beside the model and what it is trained
    with; floating point operations a token."""

    fixed: float
    per_token: float
    flops: float = 0.0

    def tokens(self, room: int) -> int:
        """How many fit in `room` bytes; 0 where not even what is fixed does."""
        return max(0, int((room / SPACE - self.fixed) / self.per_token))


NeedOf = Callable[..., "Need | None"]
"""`planning.needs.need_of`: what a step of a model takes; None where it cannot be measured."""


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
    need: Callable[[bool, int], Need | None] = lambda checkpointing, longest: None,
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
        need: what a step with or without checkpointing takes, measured, given the tokens of the longest sequence. Where
            it says nothing, `bytes_per_token` does; and where memory is ample by that rule, nothing is measured.
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

    sequence = max((len(p.prompt_ids) + max(len(p.chosen_ids), len(p.rejected_ids)) for p in pairs), default=1)
    by_rule = False

    @functools.cache
    def fits(with_checkpointing: bool) -> int:
        nonlocal by_rule
        ruled = bytes_per_token(config, itemsize, engine=engine, checkpointing=with_checkpointing, kept_keys=kept)
        if AMPLE * ruled * max(ENOUGH[kind], longest, token_budget or 0) <= room:
            return room // (AMPLE * ruled)
        measured = need(with_checkpointing, sequence)
        by_rule = measured is None
        return room // ruled if measured is None else measured.tokens(room)

    use = fits(False) < max(longest, token_budget or 0) if checkpointing is None else checkpointing
    possible = fits(use)
    if token_budget is None:
        enough = max(ENOUGH[kind], longest)
        token_budget = enough if possible >= enough else 1 << max(SMALLEST, possible).bit_length() - 1
    what = "pair" if together == 1 else f"{together} pairs"
    line = (
        f"{token_budget} tokens a micro-batch (longest {what} {longest}, {room / 2**30:.1f} GiB to use"
        f"{', by rule' if by_rule else ''}), "
        f"activation checkpointing {'on' if use else 'off'}"
    )
    return MemoryPlan(token_budget, use, line)
