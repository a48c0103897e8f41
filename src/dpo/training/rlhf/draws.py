"""Answers that the policy draws in a step, as pairs that share their prompt, with the rewards they are given."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, overload

from dpo.data.pair import TokenPair
from dpo.engine.work import Amount, Work
from dpo.generation.sampling import Answer, Sampling, sample

TEMPERATURE, WHOLE_VOCABULARY = 1.0, 0
"""Answers are drawn from the policy itself: of any other distribution the gradient would be biased."""


@dataclass(frozen=True)
class Drawing:
    """`samples` answers a prompt, of at most `max_new_tokens`; `end_id` ends one that stopped at any of `stop_ids`."""

    samples: int
    max_new_tokens: int
    cut_penalty: float
    stop_ids: frozenset[int]
    end_id: int
    pad_id: int

    @property
    def pairs(self) -> int:
        """Pairs a prompt's samples make; of an odd number the last has one answer."""
        return -(-self.samples // 2)


@dataclass(frozen=True)
class Draws:
    """Pairs of a step, `Drawing.pairs` of them a prompt. By pair id `penalties` of (chosen, rejected), and how many of
    both were `cut`; `spent` counts operations."""

    pairs: list[TokenPair]
    penalties: dict[str, tuple[float, float]]
    cut: dict[str, int]
    spent: int


def step_seed(seed: int, kind: str, step: int) -> int:
    """The generation seed of a step, of the run's seed and the step alone: a resumed run draws the same."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{kind}:{step}".encode()).digest()[:4], "big")


def draw(model: Any, prompts: Sequence[TokenPair], drawing: Drawing, seed: int, work: Work | None = None) -> Draws:
    """Answers of `model` as it stands, without gradients; its mode is the caller's."""
    asked = [pair.prompt_ids for pair in prompts for _ in range(drawing.samples)]
    sampling = Sampling(TEMPERATURE, WHOLE_VOCABULARY, drawing.max_new_tokens, seed)
    answers: dict[int, Answer] = {}
    for indices, found in sample(model, asked, sampling, set(drawing.stop_ids), drawing.pad_id, len(asked)):
        answers.update(zip(indices, found, strict=True))
    every = [answers[i] for i in range(len(asked))]
    spent = 0
    if work is not None:
        spent = work.forward(_amount(work, asked, every))
    pairs: list[TokenPair] = []
    penalties: dict[str, tuple[float, float]] = {}
    cut: dict[str, int] = {}
    for number, prompt in enumerate(prompts):
        of_prompt = every[number * drawing.samples : (number + 1) * drawing.samples]
        for first in range(0, drawing.samples, 2):
            both = of_prompt[first : first + 2]
            ids = [_ids(answer, drawing) for answer in both] + [[]] * (2 - len(both))
            pair = TokenPair(f"{prompt.id}#{first}", prompt.prompt_ids, ids[0], ids[1])
            lost = [_penalty(answer, drawing) for answer in both] + [0.0] * (2 - len(both))
            pairs.append(pair)
            penalties[pair.id] = lost[0], lost[1]
            cut[pair.id] = sum(not answer.finished for answer in both)
    return Draws(pairs, penalties, cut, spent)


def _ids(answer: Answer, drawing: Drawing) -> list[int]:
    return [*answer.ids, drawing.end_id] if answer.finished else answer.ids


def _penalty(answer: Answer, drawing: Drawing) -> float:
    return drawing.cut_penalty if not answer.finished or not answer.ids else 0.0


def _amount(work: Work, asked: Sequence[list[int]], answers: Sequence[Answer]) -> Amount:
    # The last token of a finished answer was read to draw its end, that of a cut one was not.
    return work.drawn(asked, [len(answer.ids) - (not answer.finished) for answer in answers])


class Longest(Sequence[TokenPair]):
    """What a step may hold of `pairs`, for the memory plan: each prompt with two answers as long as they get."""

    def __init__(self, pairs: Sequence[TokenPair], max_new_tokens: int) -> None:
        self._pairs, self._answer = pairs, [0] * max_new_tokens

    def __len__(self) -> int:
        return len(self._pairs)

    @overload
    def __getitem__(self, index: int) -> TokenPair: ...
    @overload
    def __getitem__(self, index: slice) -> list[TokenPair]: ...
    def __getitem__(self, index: int | slice) -> TokenPair | list[TokenPair]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        pair = self._pairs[index]
        return TokenPair(pair.id, pair.prompt_ids, self._answer, self._answer)
