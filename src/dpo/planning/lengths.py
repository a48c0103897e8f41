"""Which pairs a run would read, by their lengths: of prepared data where it is here, else the longest there can be."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dpo.config.schema import Config
from dpo.data.pair import TokenPair
from dpo.data.prepare import Prepared, prepare
from dpo.engine.budget import cost
from dpo.errors import DpoError
from dpo.modeling.embedded import converted_folder
from dpo.modeling.policy import templates
from dpo.modeling.tokenizer import load_tokenizer
from dpo.modeling.weights import find_on_hub
from dpo.training.order import epoch_order

PROMPT = 16
"""Tokens of the prompt of the longest pair that dataset.max_length allows: the shorter it is, the less is shared."""
PAIRS = {"hh_rlhf": 159_200, "shp": 92_000, "webgpt": 12_900, "ultrafeedback": 58_000, "helpsteer3": 36_000}
"""Training pairs of the public datasets as their recipes leave them, roughly, where the data is not here."""

UNBOUNDED = 1 << 50
QUANTILES: dict[str, tuple[tuple[int, int, int], ...]] = {
    "hh_rlhf": (
        (36, 4, 7), (39, 22, 12), (40, 30, 28), (39, 42, 15), (75, 12, 14), (76, 16, 21), (99, 2, 6), (49, 23, 66),
        (114, 11, 9), (94, 11, 40), (49, 53, 94), (121, 19, 31), (110, 31, 52), (132, 42, 29), (107, 23, 75),
        (132, 60, 37), (69, 133, 31), (48, 166, 84), (218, 8, 6), (199, 37, 36), (121, 131, 81), (230, 37, 12),
        (236, 28, 50), (251, 26, 50), (295, 26, 9), (194, 35, 150), (316, 43, 57), (290, 126, 77), (445, 12, 8),
        (265, 266, 224), (546, 65, 105), (1766, 221, 221),
    ),
}  # fmt: skip
"""Tokens of prompt, chosen and rejected of pairs at even ranks of the longer sequence, of 2,337 rows of harmless-base
and helpful-base in SmolLM2's tokens."""


@dataclass(frozen=True)
class Lengths:
    """Pairs without contents, the train split in its order; `known` says what of. `whole`: how many pairs train has,
    of which these are all or, where the data is not here, some that stand for them."""

    train: Sequence[TokenPair]
    dev: Sequence[TokenPair]
    known: str
    whole: int

    @classmethod
    def of(cls, prepared: Prepared, config: Config) -> Lengths:
        """Of the data of a run."""
        dev = list(_pairs(prepared.dev.lengths))[: config.dpo.eval_limit]
        train = list(_pairs(prepared.train.lengths))
        return cls(train, dev, f"{len(train)} training pairs as prepared", len(train))

    def steps(self, config: Config) -> Iterator[list[TokenPair]]:
        """The pairs of each step of the run, in its order; where the data is not here, a few like them."""
        size = config.dpo.batch_size
        if self.whole > len(self.train):
            # Its longest together first, as some step of many has them; then all in turn.
            worst = max(self.train, key=lambda pair: cost([pair], "packed"))
            several = [pair for pair in self.train for _ in range(-(-size // len(self.train)))]
            yield [worst, *self.train[-size:-1]][:size]
            yield from (several[i : i + size] for i in range(0, len(several), size))
            return
        left = steps_of(config, self.whole)
        epoch = 0
        while left > 0:
            order = epoch_order(len(self.train), config.seed, epoch)
            for start in range(0, len(order), size):
                yield [self.train[i] for i in order[start : start + size]]
                left -= 1
                if left == 0:
                    break
            epoch += 1


def steps_of(config: Config, pairs: int) -> int:
    """Optimizer steps of a run over `pairs`."""
    dpo = config.dpo
    return dpo.max_steps if dpo.max_steps is not None else math.ceil(dpo.epochs * math.ceil(pairs / dpo.batch_size))


def of_length(name: str, pair: TokenPair) -> TokenPair:
    """One as long, with token ids."""
    return TokenPair(name, [1] * len(pair.prompt_ids), [1] * len(pair.chosen_ids), [1] * len(pair.rejected_ids))


def lengths_of(config: Config) -> Lengths:
    """Of what the run would read. Nothing is fetched: what is not on this machine is taken at its longest."""
    longest = config.dataset.max_length
    try:
        tokenizer = _tokenizer(config)
        prepared = prepare(config.dataset, tokenizer)
    except (DpoError, OSError, ValueError) as error:
        if config.dataset.path is not None and not isinstance(error, _NoTokenizer):
            raise
        why = str(error).splitlines()[0][:90]
        count = min(config.dataset.limit or UNBOUNDED, PAIRS.get(config.dataset.source, 10_000))
        if config.dataset.source in QUANTILES:
            known = [_cut(longest, *sides) for sides in QUANTILES[config.dataset.source]]
            return Lengths(known, known[::4], f"lengths of {config.dataset.source} as known, as {why}", count)
        side = _like(PROMPT, longest - PROMPT, longest - PROMPT)
        return Lengths([side], [side], f"pairs as long as dataset.max_length={longest} allows, as {why}", count)
    return Lengths.of(prepared, config)


class _NoTokenizer(DpoError):
    exit_code = 2


def _tokenizer(config: Config) -> Any:
    path, folder = config.model.path, None
    if path.startswith("embedded:"):
        folder = converted_folder(path.removeprefix("embedded:"))
    elif Path(path).expanduser().is_dir():
        folder = Path(path).expanduser()
    else:
        folder = find_on_hub(path, config.model.revision, "model.path")[0]
    if folder is None or not any(folder.glob("tokenizer*")):
        raise _NoTokenizer(f"{path} has no tokenizer here")
    return load_tokenizer(folder, config.model.chat_template, templates(), False, "2026-01-01")


def _pairs(lengths: np.ndarray[Any, Any]) -> Iterator[TokenPair]:
    for prompt, chosen, rejected in lengths.tolist():
        yield _like(prompt, chosen, rejected)


def _cut(longest: int, prompt: int, chosen: int, rejected: int) -> TokenPair:
    """As truncation leaves it: of the prompt first."""
    answers = min(max(chosen, rejected), longest - PROMPT)
    return _like(min(prompt, longest - answers), min(chosen, answers), min(rejected, answers))


def _like(prompt: int, chosen: int, rejected: int) -> TokenPair:
    # Their number is all that is asked for.
    ids: Any = range
    return TokenPair("", ids(prompt), ids(chosen), ids(rejected))
