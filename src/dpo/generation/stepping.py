"""The next token's logits of growing rows: from the model's cache, or from the whole text where its cache is another.

Families differ in what their forward takes and keeps (positions, recurrent states, alibi). Reading every row anew needs
nothing but a causal model, and is what the cached way is compared with before it is trusted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch

from dpo.engine.support import VERIFIED
from dpo.errors import is_out_of_memory

_MARK = "_dpo_steps"
CLOSE = 0.1
"""Of the logits' deviation: far above rounding, far below what another position or mask does."""


class Steps(Protocol):
    """Rows of tokens that grow together."""

    def logits(self) -> torch.Tensor:
        """(rows, vocabulary) for the token that comes next."""

    def extend(self, keep: torch.Tensor, drawn: torch.Tensor) -> None:
        """Go on with the rows `keep` (indices), each one token longer by `drawn`."""


class Cached:
    """The keys and values of what was read are kept.

    A prompt that several rows begin with (samples of one prompt) is read once, and so are the `shared` tokens that all
    prompts begin with.
    """

    def __init__(self, model: Any, prompts: Sequence[list[int]], pad_id: int, shared: int = 0) -> None:
        from dpo.generation.memory import roomy_cache

        device = model.device
        distinct = list(dict.fromkeys(map(tuple, prompts)))
        width = max(map(len, distinct))
        own = [list(prompt[shared:]) for prompt in distinct]
        pads = [width - shared - len(p) for p in own]
        self._model = model
        self._ids = torch.tensor([[pad_id] * n + p for n, p in zip(pads, own, strict=True)], device=device)
        rows = [[1] * shared + [0] * n + [1] * len(p) for n, p in zip(pads, own, strict=True)]
        self._mask = torch.tensor(rows, device=device)
        self._positions = (self._mask.cumsum(1) - 1).clamp_min(0)[:, shared:]
        self._cache = roomy_cache(model)
        places = {prompt: place for place, prompt in enumerate(distinct)}
        self._spread: torch.Tensor | None = None
        if len(distinct) < len(prompts):
            self._spread = torch.tensor([places[tuple(prompt)] for prompt in prompts], device=device)
        if shared:
            prefix = torch.tensor([prompts[0][:shared]], device=device)
            self._read(input_ids=prefix)
            self._cache.batch_repeat_interleave(len(distinct))

    def _read(self, **inputs: Any) -> torch.Tensor:
        """(rows, vocabulary) logits after the last token."""
        head = self._model.get_output_embeddings()
        # The last states of long rows lie far apart, and a product with such is several times slower.
        near = head.register_forward_pre_hook(lambda module, states: (states[0].contiguous(),))
        try:
            out = self._model(past_key_values=self._cache, use_cache=True, logits_to_keep=1, **inputs)
        finally:
            near.remove()
        found: torch.Tensor = out.logits[:, -1].float()
        return found

    def logits(self) -> torch.Tensor:
        """See Steps."""
        found = self._read(input_ids=self._ids, attention_mask=self._mask, position_ids=self._positions)
        if self._spread is not None:
            rows, self._spread = self._spread, None
            self._keep(rows)
            self._ids = self._ids[rows]
            found = found[rows]
        return found

    def extend(self, keep: torch.Tensor, drawn: torch.Tensor) -> None:
        """See Steps."""
        if len(keep) < len(self._ids):
            self._keep(keep)
        self._ids = drawn.unsqueeze(1)
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(keep), 1)], dim=1)
        self._positions = self._positions[:, -1:] + 1

    def _keep(self, rows: torch.Tensor) -> None:
        self._cache.batch_select_indices(rows)
        self._mask, self._positions = self._mask[rows], self._positions[rows]


class Whole:
    """Every row is read from its beginning at each token. Padding stands to the right, where nothing sees it."""

    def __init__(self, model: Any, prompts: Sequence[list[int]], pad_id: int) -> None:
        self._model, self._pad = model, pad_id
        self._rows = [list(prompt) for prompt in prompts]

    def logits(self) -> torch.Tensor:
        """See Steps."""
        width, device = max(map(len, self._rows)), self._model.device
        ids = torch.tensor([row + [self._pad] * (width - len(row)) for row in self._rows], device=device)
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in self._rows], device=device)
        logits = self._model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        last = torch.tensor([len(row) - 1 for row in self._rows], device=device)
        found: torch.Tensor = logits[torch.arange(len(self._rows), device=device), last].float()
        return found

    def extend(self, keep: torch.Tensor, drawn: torch.Tensor) -> None:
        """See Steps."""
        self._rows = [[*self._rows[i], token] for i, token in zip(keep.tolist(), drawn.tolist(), strict=True)]


def uses_cache(model: Any) -> bool:
    """Whether the cached way gives this model's own logits; asked once a model, with a few tokens."""
    if model.config.model_type in VERIFIED:
        return True
    known = getattr(model, _MARK, None)
    if known is None:
        known = _agree(model)
        setattr(model, _MARK, known)
        if not known:
            print(f"each token reads the whole text: {model.config.model_type} keeps what it read in a way of its own")
    return bool(known)


def sees_everything(model: Any) -> bool:
    """Not with sliding windows: padding lies between a shared prefix and the rest, and windows would count it."""
    return getattr(model.config, "sliding_window", None) is None


@torch.no_grad()
def _agree(model: Any) -> bool:
    """Prompts of two lengths, one twice, and a row that ends before the others: all that happens to a cache."""
    prompts, pad = [[3, 5, 4], [3, 5, 5, 3, 4, 5], [3, 5, 5, 3, 4, 5]], 0
    try:
        for shared in (0, 2) if sees_everything(model) else (0,):
            whole, cached = Whole(model, prompts, pad), Cached(model, prompts, pad, shared)
            for left in ([0, 1, 2], [1, 2], [0, 1]):
                wanted, found = whole.logits(), cached.logits()
                if not float((wanted - found).abs().max()) <= CLOSE * float(wanted.std()):
                    return False
                keep = torch.tensor(left, device=model.device)
                for steps in (whole, cached):
                    steps.extend(keep, wanted.argmax(-1)[keep])
    except Exception as error:
        if is_out_of_memory(error):
            raise
        return False
    return True
