"""Pairs to a batch: TRL's padded tensors, and the packed layout beside them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from dpo.training.packed.layout import PackedLayout

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dpo.data.pair import TokenPair

LAYOUT_KEY = "packed"
"""Batch key of the layout; it travels through TRL to the model's forward."""


def pack(pairs: Sequence[TokenPair], pad_id: int) -> dict[str, Any]:
    """The batch that TRL's loss reads, with the packed layout under `packed`.

    Args:
        pairs: B pairs, none empty on either side.
        pad_id: fills the right of shorter rows.

    Returns:
        `input_ids`, `attention_mask`, `completion_mask`: int64 [2B, L], chosen rows first, then rejected (the layout
        of TRL's DataCollatorForPreference); `packed`: a `PackedLayout`.

    Raises:
        ValueError: no pairs, or an empty prompt or completion.
    """
    batch = pad(pairs, pad_id)
    batch[LAYOUT_KEY] = layout(pairs, columns=batch["input_ids"].shape[1])
    return batch


def pad(pairs: Sequence[TokenPair], pad_id: int) -> dict[str, Any]:
    """The padded tensors of `pack` alone: what the plain engine computes on."""
    if not pairs:
        raise ValueError("a batch needs at least one pair")
    for pair in pairs:
        if not (pair.prompt_ids and pair.chosen_ids and pair.rejected_ids):
            raise ValueError(f"{pair.id}: prompt, chosen and rejected each need at least one token")
    rows = [(pair.prompt_ids, pair.chosen_ids) for pair in pairs] + [(p.prompt_ids, p.rejected_ids) for p in pairs]
    columns = max(len(prompt) + len(completion) for prompt, completion in rows)
    input_ids = torch.full((len(rows), columns), pad_id, dtype=torch.long)
    attention_mask = torch.zeros((len(rows), columns), dtype=torch.long)
    completion_mask = torch.zeros((len(rows), columns), dtype=torch.long)
    for row, (prompt, completion) in enumerate(rows):
        end = len(prompt) + len(completion)
        input_ids[row, :end] = torch.tensor(prompt + completion)
        attention_mask[row, :end] = 1
        completion_mask[row, len(prompt) : end] = 1
    return {"input_ids": input_ids, "attention_mask": attention_mask, "completion_mask": completion_mask}


def layout(pairs: Sequence[TokenPair], columns: int | None = None) -> PackedLayout:
    """The packed layout of `pairs` against padded rows of `columns` tokens (default: the longest sequence)."""
    if columns is None:
        columns = max(len(p.prompt_ids) + max(len(p.chosen_ids), len(p.rejected_ids)) for p in pairs)
    width = columns - 1
    token_ids: list[int] = []
    positions: list[int] = []
    predictor_rows: list[int] = []
    target_rows: list[int] = []
    targets: list[int] = []
    padded: list[int] = []
    lengths: list[tuple[int, int, int]] = []
    for index, pair in enumerate(pairs):
        prompt, chosen, rejected = len(pair.prompt_ids), len(pair.chosen_ids), len(pair.rejected_ids)
        start = len(token_ids)
        token_ids += pair.prompt_ids + pair.chosen_ids + pair.rejected_ids
        positions += [*range(prompt + chosen), *range(prompt, prompt + rejected)]
        shared = len(predictor_rows)
        predictor_rows += range(start + prompt - 1, start + prompt + chosen - 1)
        predictor_rows += range(start + prompt + chosen, start + prompt + chosen + rejected - 1)
        target_rows += [
            *range(shared, shared + chosen),
            shared,
            *range(shared + chosen, shared + chosen + rejected - 1),
        ]
        targets += pair.chosen_ids + pair.rejected_ids
        first = index * width + prompt - 1
        padded += range(first, first + chosen)
        first += len(pairs) * width
        padded += range(first, first + rejected)
        lengths.append((prompt, chosen, rejected))
    return PackedLayout(
        token_ids=torch.tensor(token_ids).unsqueeze(0),
        position_ids=torch.tensor(positions).unsqueeze(0),
        predictor_rows=torch.tensor(predictor_rows),
        target_rows=torch.tensor(target_rows),
        targets=torch.tensor(targets),
        padded_index=torch.tensor(padded),
        padded_shape=(2 * len(pairs), width),
        lengths=tuple(lengths),
    )
