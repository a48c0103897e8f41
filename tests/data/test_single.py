"""Rows of a single answer: read, counted, told apart from pairs, and refused where a loss compares two answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny

from dpo.config.datasets import Local
from dpo.data.pair import Pair
from dpo.data.refusal import Reason, Refusal
from dpo.data.single import balance, said
from dpo.data.sources.local import to_pair


def local(**values: Any) -> Local:
    return Local(**{"source": "local", "columns": {}, "soft_labels": False, **values})


@pytest.mark.parametrize(
    ("label", "chosen", "rejected"),
    [(True, "Yes.", ""), ("True", "Yes.", ""), (1, "Yes.", ""), (False, "", "Yes."), ("0", "", "Yes.")],
)
def test_a_single_answer_has_one_side(label: Any, chosen: str, rejected: str) -> None:
    pair = to_pair({"prompt": "Is it?", "completion": "Yes.", "label": label}, "local:train:0", local())
    assert isinstance(pair, Pair)
    assert (pair.chosen, pair.rejected) == (chosen, rejected)
    assert pair.notes == ()


@pytest.mark.parametrize(
    ("changed", "reason", "where"),
    [
        ({"label": "maybe"}, Reason.label_unknown, "label"),
        ({"label": None}, Reason.null, "label"),
        ({"completion": " "}, Reason.empty_completion, "completion"),
        ({"prompt": ""}, Reason.empty_prompt, "prompt"),
    ],
)
def test_what_is_no_single_answer_is_refused(changed: dict[str, Any], reason: Reason, where: str) -> None:
    row = {"prompt": "Is it?", "completion": "Yes.", "label": True, **changed}
    found = to_pair(row, "local:train:0", local())
    assert isinstance(found, Refusal)
    assert (found.reason, found.field) == (reason, where)


def test_the_rarer_kind_is_given_the_weight_of_the_papers_rule() -> None:
    def rows(wanted: int, unwanted: int) -> np.ndarray:
        return np.array([[5, 3, 0]] * wanted + [[5, 0, 2]] * unwanted)

    assert balance(np.array([[5, 3, 2]])) is None
    for wanted, unwanted in ((30, 90), (90, 30), (7, 11), (1, 50)):
        found = balance(rows(wanted, unwanted))
        assert found is not None
        for weight, ratio in ((found["from"], 1.0), (found["to"], 4 / 3)):
            of = {"desirable_weight": 1.0, "undesirable_weight": 1.0, found["weight"]: weight}
            got = of["desirable_weight"] * wanted / (of["undesirable_weight"] * unwanted)
            assert got == pytest.approx(ratio if wanted < unwanted else 7 / 3 - ratio)
    assert "weight" not in (balance(rows(12, 10)) or {})
    assert "without both" in said(balance(rows(3, 0)))[0]


def test_prepare_counts_them_and_other_losses_refuse_them(tmp_path: Path) -> None:
    argv = tiny.arguments(tiny.make_model(tmp_path / "model"), tiny.make_singles(tmp_path / "rows.jsonl"))
    model, rows = argv[1], argv[3]
    prepared = ["model=custom", model, "dataset=local", rows, f"output={tmp_path / 'out'}"]
    code, output = tiny.run("prepare", prepared, tmp_path)
    assert code == 0, output
    assert "single answers to train on: " in output
    assert "by KTO's rule dpo.desirable_weight should be" in output
    report = json.loads(next((tmp_path / "out").glob("*/data.json")).read_text())
    assert report["single_answers"]["wanted"] < report["single_answers"]["unwanted"]
    code, output = tiny.run("train", argv, tmp_path)
    assert code == 3, output
    assert "sigmoid compares two; take dpo=kto" in output
    with (tmp_path / "rows.jsonl").open("a") as file:
        file.write(json.dumps({"prompt": "home?", "chosen": "tree", "rejected": "home"}) + "\n")
    code, output = tiny.run("prepare", prepared, tmp_path)
    assert code == 3, output
    assert "1 are pairs" in output
