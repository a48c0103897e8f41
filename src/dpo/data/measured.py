"""What a report says of the tokens of an entry: their lengths, whether length gives the choice away, examples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from dpo.data.control_tokens import Codec
from dpo.data.lengths import length_bias, longest, quantiles
from dpo.data.pair import TokenPair
from dpo.data.report import SPLITS
from dpo.data.single import balance, is_single
from dpo.data.token_file import TokenFile


def measured(folder: Path, codec: Codec) -> dict[str, Any]:
    """Of the entry in `folder`, by split where splits differ. Raises DataError for single answers among pairs."""
    tokens = {split: TokenFile(folder, split) for split in SPLITS}
    is_single(np.concatenate([part.lengths for part in tokens.values()]))
    train = tokens["train"]
    return {
        "longest": max(longest(part.lengths) for part in tokens.values()),
        "soft_labels": sum(int((part.strengths < 1).sum()) for part in tokens.values()),
        "lengths": {split: quantiles(part.lengths[:, 0], part.counted) for split, part in tokens.items()},
        "length_bias": {split: length_bias(part.counted) for split, part in tokens.items()},
        "seen_not_counted": sum(int((part.lengths[:, 1:] - part.counted).sum()) for part in tokens.values()),
        "single_answers": balance(train.lengths),
        "examples": [visible(codec, train[i]) for i in _spread(len(train), 3)],
    }


def visible(codec: Codec, pair: TokenPair) -> dict[str, str]:
    """A token pair as text again, control tokens between \u27e6 and \u27e7 so that typed ones look different."""
    sides = {"prompt": pair.prompt_ids, "chosen": pair.chosen_ids, "rejected": pair.rejected_ids}
    return {"id": pair.id, **{name: codec.visible(ids) for name, ids in sides.items()}}


def _spread(count: int, wanted: int) -> list[int]:
    return sorted({i * (count - 1) // max(1, wanted - 1) for i in range(wanted)})
