"""In which order a run reads its pairs."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.utils.data import Sampler


class EpochOrder(Sampler):
    """A permutation that is a function of (seed, epoch) alone, so that anyone can tell which pairs a run reads."""

    def __init__(self, length: int, seed: int) -> None:
        self.length, self.seed, self.epoch = length, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the data loader at each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[int]:
        return iter(epoch_order(self.length, self.seed, self.epoch))


def epoch_order(length: int, seed: int, epoch: int) -> list[int]:
    """The order in which epoch `epoch` of a run with `seed` reads its pairs."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    return torch.randperm(length, generator=generator).tolist()
