"""What a run says of its data before it trains: held-out splits that are empty or too small to compare by."""

from __future__ import annotations

import pytest

from dpo.data.remarks import few_held_out


@pytest.mark.parametrize(
    ("train", "dev", "test", "said"),
    [
        (800, 100, 100, []),
        (
            90, 10, 0,
            ["only 10 dev pairs: shares of them are known to 31 points up or down; dataset.dev_fraction=0.33 holds out "
             "more", "no test pairs, so nothing can be evaluated; dataset.test_fraction=0.33 holds out more"],
        ),
        (
            960, 0, 40,
            ["no dev pairs, so nothing shows overfitting; dataset.dev_fraction=0.05 holds out more",
             "only 40 test pairs: shares of them are known to 15 points up or down; "
             "dataset.test_fraction=0.05 holds out more"],
        ),
    ],
)  # fmt: skip
def test_few_held_out_pairs_are_said_with_the_key_for_more(train: int, dev: int, test: int, said: list[str]) -> None:
    assert few_held_out({"kept": {"train": train, "dev": dev, "test": test}}) == said
