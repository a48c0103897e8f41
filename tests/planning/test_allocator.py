"""The replayed allocator: what torch's rounds, splits, joins and gives back."""

from __future__ import annotations

import pytest
import torch

from dpo.planning.allocator import Allocator

MB = 1 << 20


def test_small_tensors_share_a_segment_of_two_megabytes() -> None:
    card = Allocator(100 * MB)
    blocks = [card.take(size) for size in (1, 513, MB)]
    assert card.allocated == 512 + 1024 + MB
    assert card.reserved == 2 * MB
    for block in blocks:
        card.give(block)
    assert (card.allocated, card.reserved, card.highest) == (0, 2 * MB, 2 * MB)


def test_a_large_one_takes_a_segment_of_twenty_or_its_own_size() -> None:
    card = Allocator(1000 * MB)
    card.take(2 * MB)
    assert card.reserved == 20 * MB
    card.take(15 * MB)
    assert card.reserved == 20 * MB, "what was left of the first segment"
    card.take(11 * MB)
    assert card.reserved == 32 * MB, "rounded to 2 MB"


def test_joined_neighbours_serve_a_larger_one() -> None:
    card = Allocator(1000 * MB)
    first, second = card.take(4 * MB), card.take(8 * MB)
    card.give(first)
    card.give(second)
    card.take(20 * MB)
    assert card.reserved == 20 * MB


def test_unused_segments_are_given_back_before_memory_runs_out() -> None:
    card = Allocator(100 * MB)
    card.give(card.take(60 * MB))
    card.take(90 * MB)
    assert card.reserved == 90 * MB
    with pytest.raises(torch.OutOfMemoryError):
        card.take(20 * MB)
