"""Keys and values of what was read, with room for what comes: transformers' cache copies all it holds at each token."""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer

SPARE = 32
"""Tokens that fit before a layer's keys and values are copied into a larger room."""


class RoomyLayer(DynamicLayer):
    """A DynamicLayer whose keys and values [rows, heads, tokens, head size] are the front of larger tensors."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._rooms: list[torch.Tensor] = []

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append [rows, heads, new tokens, head size]; returns all keys and all values."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start, states = self.get_seq_length(), (key_states, value_states)
        end = start + key_states.shape[-2]
        if not self._rooms or self._rooms[0].shape[-2] < end:
            # Keys and values differ in head size in some families.
            rooms = [new.new_empty(*new.shape[:-2], end + SPARE, new.shape[-1]) for new in states]
            if start:
                for room, held in zip(rooms, self._held(), strict=True):
                    room[..., :start, :] = held
            self._rooms = rooms
        for room, new in zip(self._rooms, states, strict=True):
            room[..., start:end, :] = new
        self._show(end)
        return self._held()

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Every row `repeats` times."""
        super().batch_repeat_interleave(repeats)
        self._rooms = []

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep these rows, in this order; a row may be named several times."""
        if self._rooms:
            length = self.get_seq_length()
            self._rooms = [room[indices] for room in self._rooms]
            self._show(length)
        else:
            super().batch_select_indices(indices)

    def _held(self) -> tuple[torch.Tensor, torch.Tensor]:
        assert self.keys is not None
        assert self.values is not None
        return self.keys, self.values

    def _show(self, length: int) -> None:
        self.keys, self.values = (room[..., :length, :] for room in self._rooms)


def roomy_cache(model: Any) -> Any:
    """An empty cache for `model`: roomy layers where transformers has plain growing ones, its own elsewhere."""
    cache = DynamicCache(config=model.config)
    cache.layers = [RoomyLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    if getattr(cache, "layer_class_to_replicate", None) is DynamicLayer:
        cache.layer_class_to_replicate = RoomyLayer
    return cache
