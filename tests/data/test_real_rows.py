"""Every row of the real samples is accounted for: kept, or refused with its reason; totals and ids are exact."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import real_rows
from data_options import dataset, load_splits
from tokenizer_families import chatml

from dpo.data.load import Splits
from dpo.data.pair import Pair
from dpo.data.prepare import prepare

WEBGPT_TOTALS = (100, 89, {"empty rejected": 11})


def load(option: str, path: Path, **values: Any) -> Splits:
    return load_splits(dataset(option, path=str(path), **{"on_bad": "drop", **values}))


def pairs(splits: Splits) -> list[Pair]:
    return [*splits.train, *splits.dev, *splits.test]


def account(splits: Splits) -> tuple[int, int, dict[str, int]]:
    """(rows, kept, refused by reason); no row is lost or counted twice."""
    report = splits.report
    kept = pairs(splits)
    ids = [pair.id for pair in kept] + [row_id for ids in report.refused.values() for row_id in ids]
    assert len(ids) == len(set(ids)) == sum(report.rows.values())
    assert report.kept == {"train": len(splits.train), "dev": len(splits.dev), "test": len(splits.test)}
    assert not {p.group for p in splits.train} & {p.group for p in [*splits.dev, *splits.test]}
    return len(ids), len(kept), {reason: len(rows) for reason, rows in report.refused.items()}


def rows_of(ids: Sequence[str]) -> list[int]:
    return [int(row_id.rpartition(":")[2]) for row_id in ids]


def test_harmless_rows_have_exactly_their_known_dirt(real_data: Path, tmp_path: Path) -> None:
    path = real_data / "hh_rlhf" / "harmless_base.jsonl.gz"
    splits = load("hh_rlhf", path)
    assert account(splits) == (1500, 1495, {"empty chosen": 4, "prompts differ": 1})
    assert rows_of(splits.report.refused["empty chosen"]) == [86, 516, 925, 1103]
    assert rows_of(splits.report.refused["prompts differ"]) == [1254]
    assert len(splits.report.notes["prompt seen before"]) == 2
    assert sum(len(pair.prompt) > 1 for pair in pairs(splits)) == 1056  # 71% of the kept rows
    report = prepare(dataset("hh_rlhf", path=str(path)), chatml(), tmp_path).report
    # The fourth row with two turns of one role is 1254, refused above.
    assert sorted(rows_of(report["noted"]["turns of one role joined"]["ids"])) == [667, 763, 1319]


def test_helpful_rows_have_exactly_their_known_dirt(real_data: Path) -> None:
    splits = load("hh_rlhf", real_data / "hh_rlhf" / "helpful_base.jsonl.gz")
    assert account(splits) == (1000, 996, {"chosen equals rejected": 4})
    assert rows_of(splits.report.refused["chosen equals rejected"]) == [101, 481, 601, 854]


def test_a_folder_gives_one_subset_or_all(real_data: Path) -> None:
    folder = real_data / "hh_rlhf"
    assert account(load("hh_rlhf", folder))[:2] == (2500, 2491)
    assert account(load("hh_rlhf", folder, subset="helpful-base"))[:2] == (1000, 996)


def test_hh_rows_are_also_local_transcripts(real_data: Path) -> None:
    path = real_data / "hh_rlhf" / "harmless_base.jsonl.gz"
    as_hub = {pair.id.rpartition(":")[2]: (pair.prompt, pair.chosen) for pair in pairs(load("hh_rlhf", path))}
    as_own = {pair.id.rpartition(":")[2]: (pair.prompt, pair.chosen) for pair in pairs(load("local", path))}
    assert as_hub == as_own


def test_shp_rows(real_data: Path) -> None:
    path = real_data / "shp" / "askphysics.jsonl"
    splits = load("shp", path)
    assert account(splits) == (30, 16, {"more pairs of one post than wanted": 7, "weak preference": 7})
    raw = [json.loads(line) for line in path.read_text().splitlines()]
    for pair in pairs(splits):
        row = raw[int(pair.id.rpartition(":")[2])]
        better = "A" if row["score_A"] > row["score_B"] else "B"
        assert pair.chosen == row[f"human_ref_{better}"]
        assert row["score_ratio"] >= 2
    kept = account(load("shp", path, min_ratio=1.0, pairs_per_post=None))
    assert kept == (30, 30, {})


def test_webgpt_rows(real_data: Path, tmp_path: Path) -> None:
    rows = real_rows.webgpt(real_data)
    path = tmp_path / "webgpt.jsonl"
    path.write_bytes(real_rows.jsonl(rows))
    assert all(row["score_0"] == -row["score_1"] for row in rows)
    ties = sum(row["score_0"] == 0 for row in rows)
    splits = load("webgpt", path)
    total, kept, refused = account(splits)
    assert (total, kept, refused) == WEBGPT_TOTALS
    assert refused.get("tie", 0) == ties
    for pair in pairs(splits):
        row = rows[int(pair.id.rpartition(":")[2])]
        assert [pair.chosen, pair.rejected, 1.0, pair.prompt[0].content] == real_rows.said("webgpt", row)


def test_llmbar_rows(real_data: Path) -> None:
    path = real_data / "llmbar" / "natural.json"
    columns = {"prompt": "input", "response_a": "output_1", "response_b": "output_2"}
    splits = load("local", path, columns=columns, label_a="1", label_b="2")
    assert account(splits) == (100, 100, {})
    raw = json.loads(path.read_text())
    for pair in pairs(splits):
        row = raw[int(pair.id.rpartition(":")[2])]
        assert (pair.chosen, pair.rejected) == (row[f"output_{row['label']}"], row[f"output_{3 - row['label']}"])


LOCAL_TOTALS = {
    "ultrafeedback/sample.jsonl.gz": (700, 699, {"chosen equals rejected": 1}),
    "sharegpt/dpo_en_demo.json.gz": (300, 295, {"duplicate pair": 5}),
    "orca/orca_dpo_pairs_demo.csv": (100, 100, {}),
}


@pytest.mark.parametrize("name", LOCAL_TOTALS)
def test_local_rows(name: str, real_data: Path) -> None:
    assert account(load("local", real_data / name)) == LOCAL_TOTALS[name]


def test_the_identical_pair_is_identical(real_data: Path) -> None:
    with gzip.open(real_data / "ultrafeedback" / "sample.jsonl.gz", "rt") as file:
        rows = [json.loads(line) for line in file]
    same = [n for n, row in enumerate(rows) if row["chosen"].split() == row["rejected"].split()]
    assert same == rows_of(load("local", real_data / "ultrafeedback/sample.jsonl.gz").report.refused[
        "chosen equals rejected"])  # fmt: skip


def test_orca_answers_that_look_like_lists_stay_text(real_data: Path) -> None:
    path = real_data / "orca" / "orca_dpo_pairs_demo.csv"
    first = next(pair for pair in pairs(load("local", path)) if pair.id == "local:train:0")
    assert first.chosen.startswith('[\n  ["AFC Ajax')
