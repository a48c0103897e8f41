"""Whatever the rows and fractions: no prompt, post, question or subject is in two splits, in any source."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from data_options import dataset, load_splits
from hypothesis import given, settings
from hypothesis import strategies as st

from dpo.data.sources import SOURCES
from dpo.data.sources.fields import prompt_key
from dpo.errors import DataError

Row = dict[str, Any]


def talk(*texts: str) -> list[Row]:
    return [{"role": role, "content": text} for role, text in zip(("user", "assistant") * 2, texts, strict=False)]


def transcript(prompt: str, answer: str) -> str:
    return f"\n\nHuman: {prompt}\n\nAssistant: {answer}"


# One row about a prompt, of a group (post, question, subject), with two answers.
MAKE: dict[str, Callable[[str, str, str, str], Row]] = {
    "synthetic": lambda q, g, a, b: {"prompt": q, "chosen": a, "rejected": b, "subject": g},
    "hh_rlhf": lambda q, g, a, b: {"chosen": transcript(q, a), "rejected": transcript(q, b)},
    "shp": lambda q, g, a, b: {
        "post_id": g, "history": q, "human_ref_A": a, "human_ref_B": b, "labels": 1, "score_A": 9, "score_B": 3,
        "score_ratio": 3.0,
    },
    "webgpt": lambda q, g, a, b: {
        "question": {"dataset": "eli5", "id": g, "full_text": q}, "answer_0": a, "answer_1": b, "score_0": 0.5,
        "score_1": -0.5,
    },
    "ultrafeedback": lambda q, g, a, b: {
        "chosen": talk(q, a), "rejected": talk(q, b), "score_chosen": 2.0, "score_rejected": 1.0
    },
    "helpsteer3": lambda q, g, a, b: {"context": talk(q), "response1": a, "response2": b, "overall_preference": -2},
    "local": lambda q, g, a, b: {"prompt": q, "chosen": a, "rejected": b},
    "hub": lambda q, g, a, b: {"prompt": q, "chosen": a, "rejected": b},
}  # fmt: skip
HAS_GROUPS = {"synthetic": "subject", "shp": "post_id", "webgpt": "question"}

# Prompts that differ only in white space are one; some posts have one text, some questions several.
PROMPTS = st.builds(lambda n, blank: f"Why{blank}{n}?", st.integers(0, 9), st.sampled_from([" ", "  ", "\n"]))
ROW = st.tuples(PROMPTS, st.integers(0, 7).map(lambda n: f"g{n}"), st.integers(0, 3), st.integers(4, 7))
FRACTION = st.sampled_from([0.0, 0.2, 0.45])


def test_every_source_is_tried() -> None:
    assert MAKE.keys() == SOURCES.keys()


@pytest.mark.parametrize("source", MAKE)
@settings(max_examples=40, deadline=None)
@given(
    files=st.fixed_dictionaries(
        {"train": st.lists(ROW, min_size=1, max_size=40)},
        optional={"validation": st.lists(ROW, max_size=12), "test": st.lists(ROW, max_size=12)},
    ),
    dev=FRACTION,
    test=FRACTION,
)
def test_splits_share_nothing(source: str, files: dict[str, list[Any]], dev: float, test: float) -> None:
    with tempfile.TemporaryDirectory() as name:
        for split, rows in files.items():
            made = [MAKE[source](prompt, group, f"a{a}", f"b{b}") for prompt, group, a, b in rows]
            (Path(name) / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made))
        try:
            given = {"id": "org/name"} if source == "hub" else {}
            splits = load_splits(dataset(source, path=name, dev_fraction=dev, test_fraction=test, **given))
        except DataError as error:  # everything was held out
            if "no pair to train on" not in str(error):
                raise
            return
    parts = [splits.train, splits.dev, splits.test]
    prompts = [{prompt_key(pair.prompt) for pair in part} for part in parts]
    groups = [{pair.group for pair in part} for part in parts]
    for found in (prompts, groups):
        assert not found[0] & found[1] | found[0] & found[2] | found[1] & found[2]
    if source in HAS_GROUPS:
        assert all("g" in group for part in groups for group in part)
    report = splits.report
    assert sum(report.rows.values()) == sum(map(len, files.values()))
    assert sum(report.rows.values()) == sum(map(len, parts)) + sum(map(len, report.refused.values()))
    for split, given_rows in (("dev", "validation"), ("test", "test")):
        if given_rows not in files and not {"dev": dev, "test": test}[split]:
            assert not getattr(splits, split)
