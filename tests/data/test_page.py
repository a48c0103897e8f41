"""The page of a prepared dataset in a real Chromium: drawn, and no wider than a phone."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from test_html_pages import wanted_width

from dpo.pages.data import write_page

LONG = "local:train:" + "x" * 90


PARTS = ("prompt", "chosen", "rejected", "prompt + chosen", "prompt + rejected")
QUANTILES = dict.fromkeys(("0", "0.05", "0.25", "0.5", "0.75", "0.95", "1"), 123456)
BIAS = {"pairs": 2, "mean_tokens": -9.5, "mean_low": -20.0, "mean_high": 1.0, "chosen_longer": 0.5,
        "chosen_longer_low": 0.1, "chosen_longer_high": 0.9}  # fmt: skip
REPORT = {
    "source": "local", "origin": "/a/folder/" + "y" * 80, "revision": "c0ffee", "fingerprint": "0" * 64,
    "max_length": 512, "stopped_at_limit": True, "warnings": ["<b>few</b>"],
    "rows": {"train": 2, "dev": 0, "test": 0}, "kept": {"train": 2, "dev": 2, "test": 0},
    "refused": {"a_reason_of_one_long_word_without_a_gap": {"count": 300, "ids": [LONG] * 300}},
    "noted": {"nothing": {"count": 0, "ids": []}},
    "parts": None,
    "lengths": {"train": dict.fromkeys(PARTS, QUANTILES), "dev": None, "test": None},
    "length_bias": {"train": BIAS, "dev": None, "test": None},
    "truncation": {"prompt_of_a_long_name_cut_from_the_left": {"pairs": 1, "tokens": 9}},
    "examples": [{"id": LONG, "prompt": "<script>1</script>", "chosen": "z" * 300, "rejected": "no"}],
}  # fmt: skip
# What the page reads of prepared data: names that no line of a phone holds, and many ids.
MADE: Any = SimpleNamespace(
    report=REPORT,
    train=SimpleNamespace(
        lengths=np.array([[5, 9, 7], [8, 12, 30]], dtype=np.int32),
        counted=np.array([[9, 7], [12, 20]], dtype=np.int32),
    ),
)


def test_it_says_what_was_found(tmp_path: Path) -> None:
    write_page(MADE, tmp_path / "data.html")
    page = (tmp_path / "data.html").read_text(encoding="utf-8")
    assert "and 100 more in data.json" in page
    assert "-9.5 [-20.0, +1.0] tokens; chosen is longer in 50% [10, 90] of 2 pairs" in page
    assert "&lt;script&gt;1&lt;/script&gt;" in page
    assert "<b>few" not in page
    assert page.index("only 2 dev pairs") < page.index('id="section-2"'), "what to know stands before the figures"


@pytest.mark.slow
def test_a_phone_needs_no_sideways_scrolling_for_the_data(chromium: str, tmp_path: Path) -> None:
    write_page(MADE, tmp_path / "data.html")
    assert wanted_width(chromium, tmp_path / "data.html", tmp_path) <= 390
