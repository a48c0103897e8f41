"""Pairs to a batch: TRL's padded tensors, or the packed layout."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from dpo.engine.layout import PackedLayout

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dpo.data.pair import TokenPair


def pad(pairs: Sequence[TokenPair], pad_id: int) -> dict[str, Any]:
    """What TRL's own forward computes on.

    Args:
        pairs: B pairs; where one has a single answer, the row of the other side is its prompt alone.
        pad_id: fills the right of shorter rows.

    Returns:
        `input_ids`, `attention_mask`, `completion_mask`: int64 [2B, L], chosen rows first, then rejected (the layout
        of TRL's DataCollatorForPreference). What was given to the policy is no part of the completion mask.

    Raises:
        ValueError: no pairs, an empty prompt, or a pair without a completion.
    """
    _check(pairs)
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
        side, number = divmod(row, len(pairs))
        for first, last in pairs[number].given[side]:
            completion_mask[row, len(prompt) + first : len(prompt) + last] = 0
    return {"input_ids": input_ids, "attention_mask": attention_mask, "completion_mask": completion_mask}


def padded_index(pairs: Sequence[TokenPair], columns: int) -> torch.Tensor:
    """[N] where each counted token of the packed layout lies in flattened [2B, columns - 1] padded figures."""
    width = columns - 1
    index: list[int] = []
    for row, pair in enumerate(pairs):
        for side, places in enumerate(pair.places):
            first = (side * len(pairs) + row) * width + len(pair.prompt_ids) - 1
            index += [first + place for place in places]
    return torch.tensor(index)


def padded_prompt_index(pairs: Sequence[TokenPair], columns: int) -> torch.Tensor:
    """Where the prompt tokens of the chosen rows lie there, all but each first; pair after pair."""
    width = columns - 1
    return torch.tensor(
        [row * width + i for row, pair in enumerate(pairs) for i in range(len(pair.prompt_ids) - 1)], dtype=torch.long
    )


def layout(pairs: Sequence[TokenPair], prompts: bool = False) -> PackedLayout:
    """The packed layout of `pairs`; raises ValueError as `pad` does. `prompts`: after all completion tokens the prompt
    tokens are targets too, but for the first of each, pair after pair."""
    _check(pairs)
    token_ids: list[int] = []
    positions: list[int] = []
    predictor_rows: list[int] = []
    target_rows: list[int] = []
    targets: list[int] = []
    lengths: list[tuple[int, int, int]] = []
    counts: list[tuple[int, int]] = []
    for pair in pairs:
        prompt, chosen, rejected = len(pair.prompt_ids), len(pair.chosen_ids), len(pair.rejected_ids)
        start = len(token_ids)
        token_ids += pair.prompt_ids + pair.chosen_ids + pair.rejected_ids
        positions += [*range(prompt + chosen), *range(prompt, prompt + rejected)]
        shared = len(predictor_rows)
        # A token is predicted by the row before it; the first ones of both sides, which always count, by one row.
        better, worse = pair.places
        predictor_rows += [start + prompt - 1 + place for place in better or (0,)]
        predictor_rows += [start + prompt + chosen - 1 + place for place in worse[1:]]
        after = shared + max(len(better), 1)
        target_rows += range(shared, shared + len(better))
        if worse:
            target_rows += [shared, *range(after, after + len(worse) - 1)]
        targets += [pair.chosen_ids[place] for place in better]
        targets += [pair.rejected_ids[place] for place in worse]
        lengths.append((prompt, chosen, rejected))
        counts.append((len(better), len(worse)))
    start = 0
    for pair, size in zip(pairs, lengths, strict=True):
        if prompts:
            target_rows += range(len(predictor_rows), len(predictor_rows) + size[0] - 1)
            predictor_rows += range(start, start + size[0] - 1)
            targets += pair.prompt_ids[1:]
        start += sum(size)
    return PackedLayout(
        token_ids=torch.tensor(token_ids).unsqueeze(0),
        position_ids=torch.tensor(positions).unsqueeze(0),
        predictor_rows=torch.tensor(predictor_rows),
        target_rows=torch.tensor(target_rows),
        targets=torch.tensor(targets),
        lengths=tuple(lengths),
        counted=tuple(counts),
    )


def _check(pairs: Sequence[TokenPair]) -> None:
    if not pairs:
        raise ValueError("a batch needs at least one pair")
    for pair in pairs:
        if not (pair.prompt_ids and (pair.chosen_ids or pair.rejected_ids)):
            raise ValueError(f"{pair.id}: a prompt and an answer each need at least one token")
        if any(spans and spans[0][0] == 0 for spans in pair.given):
            raise ValueError(f"{pair.id}: the first token of an answer is the policy's own")
