"""Splits: what is held out, what a folder of files means, what a limit does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from data_options import dataset, load_splits

from dpo.config.datasets import HelpSteer3, HhRlhf, Shp, UltraFeedback
from dpo.data.checks import held_out
from dpo.data.load import Splits
from dpo.data.places.layout import choose, find_files, split_of, unnamed
from dpo.data.refusal import Reason
from dpo.errors import ConfigError, DataError


def write(path: Path, count: int, prompts: int | None = None, tag: str = "") -> Path:
    rows = [
        {"prompt": f"{tag}Question {i % (prompts or count)}?", "chosen": f"good {i}", "rejected": f"bad {i}"}
        for i in range(count)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def local(path: Path, **values: Any) -> Splits:
    return load_splits(dataset("local", path=str(path), **values))


def ids(splits: Splits) -> dict[str, list[str]]:
    return {name: [pair.id for pair in getattr(splits, name)] for name in ("train", "dev", "test")}


def test_prompts_are_held_out_whole_and_always_the_same(tmp_path: Path) -> None:
    splits = local(write(tmp_path / "rows.jsonl", 1000, prompts=250))
    groups = [{pair.group for pair in part} for part in (splits.train, splits.dev, splits.test)]
    assert not groups[0] & groups[1]
    assert not groups[0] & groups[2]
    assert not groups[1] & groups[2]
    assert [len(group) for group in groups] == [209, 21, 20]  # by a hash of the text: the same on every machine
    assert ids(splits) == ids(local(tmp_path / "rows.jsonl"))


def test_a_growing_file_moves_no_prompt(tmp_path: Path) -> None:
    few, many = local(write(tmp_path / "few.jsonl", 100)), local(write(tmp_path / "many.jsonl", 300))
    for split in ("dev", "test"):
        assert set(ids(few)[split]) <= set(ids(many)[split])


def test_given_splits_are_used_as_they_are(tmp_path: Path) -> None:
    write(tmp_path / "train-00000.jsonl", 30, tag="a")
    write(tmp_path / "train-00001.jsonl", 20, tag="b")
    write(tmp_path / "validation.jsonl", 10, tag="c")
    write(tmp_path / "test.jsonl", 7, tag="d")
    splits = local(tmp_path)
    assert {name: len(part) for name, part in ids(splits).items()} == {"train": 50, "dev": 10, "test": 7}
    assert ids(splits)["train"][-1] == "local:train:49"
    assert ids(splits)["dev"][0] == "local:dev:0"


def test_held_out_files_of_their_own(tmp_path: Path) -> None:
    rows = write(tmp_path / "mine.jsonl", 30)
    test = write(tmp_path / "other.jsonl", 5, tag="t")
    splits = local(rows, test_path=str(test), dev_fraction=0.0)
    assert {name: len(part) for name, part in ids(splits).items()} == {"train": 30, "dev": 0, "test": 5}
    splits = local(rows, dev_path=str(test), test_fraction=0.0)
    assert {name: len(part) for name, part in ids(splits).items()} == {"train": 30, "dev": 5, "test": 0}


def test_a_prompt_of_the_test_file_leaves_the_training_rows(tmp_path: Path) -> None:
    rows, test = write(tmp_path / "mine.jsonl", 30), write(tmp_path / "held.jsonl", 5)
    splits = local(rows, test_path=str(test), dev_fraction=0.0)
    assert splits.report.refused == {"prompt is held out": [f"local:train:{i}" for i in range(5)]}


def test_posts_with_one_text_stay_on_one_side(tmp_path: Path) -> None:
    """Two posts, one text: the groups differ, the prompt is the same."""
    row = {"labels": 1, "score_A": 9, "score_B": 1, "score_ratio": 9.0, "domain": "d"}
    rows = [{**row, "post_id": f"p{i}", "history": f"Post {i % 40}", "human_ref_A": f"A{i}", "human_ref_B": f"B{i}"}
            for i in range(200)]  # fmt: skip
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    splits = load_splits(dataset("shp", path=str(path), dev_fraction=0.3, test_fraction=0.3))
    prompts = [{pair.prompt for pair in part} for part in (splits.train, splits.dev, splits.test)]
    assert not prompts[0] & prompts[1] | prompts[0] & prompts[2] | prompts[1] & prompts[2]
    assert splits.report.count(Reason.leak) > 0
    assert sum(splits.report.kept.values()) + splits.report.count(Reason.leak) == 200


def test_a_limit_takes_the_first_pairs_that_pass(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", 500)
    lines = path.read_text().splitlines()
    lines[3] = lines[3].replace("good 3", "")
    path.write_text("\n".join(lines))
    whole, few = local(path, on_bad="drop"), local(path, on_bad="drop", limit=40)
    assert ids(few)["train"] == ids(whole)["train"][:40]
    assert few.report.stopped_at_limit
    assert not whole.report.stopped_at_limit
    assert sum(few.report.rows.values()) < 60


def test_nothing_to_train_on_is_an_error_that_says_why(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"prompt": "Q", "response_a": "x", "response_b": "y", "label": "tie"}) + "\n")
    with pytest.raises(DataError, match="no pair to train on\n1 rows read; refused: 1 tie"):
        local(path)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"path": None}, "dataset.path: needs a value"),
        ({"columns": {"promt": "q"}}, "dataset.columns.promt: not one of our columns; nearest: prompt"),
        ({"label_a": "x", "label_b": "x"}, "label_b: both are x"),
        ({"dev_fraction": 0.5, "test_fraction": 0.5}, "nothing is left to train on"),
        ({"source": "locl"}, "dataset.source=locl: no such source; nearest: local"),
    ],
)
def test_settings_that_cannot_work(values: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        load_splits(dataset("local", **{"path": str(write(tmp_path / "rows.jsonl", 5)), **values}))


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("harmless-base/train.jsonl.gz", "train"),
        ("harmless-base/test.jsonl.gz", "test"),
        ("askphysics/validation.json", "dev"),
        ("data/test_prefs-00000-of-00001.parquet", "test"),
        ("default/train/0000.parquet", "train"),
        ("contest.jsonl", "train"),
        ("latest_dev.csv", "dev"),
        ("eval.jsonl", "dev"),
        ("holdout.csv", "test"),
    ],
)
def test_file_names_speak_of_splits(name: str, split: str) -> None:
    assert split_of(name) == split


def test_a_file_whose_name_says_no_split_is_named_where_others_do(tmp_path: Path) -> None:
    for name in ("train.jsonl", "more.jsonl"):
        write(tmp_path / name, 5)
    assert unnamed(str(tmp_path), find_files(tmp_path, dataset("local"))) == [
        "trained on, as its name says no split: more.jsonl"
    ]
    (tmp_path / "train.jsonl").unlink()
    for path in (tmp_path, tmp_path / "more.jsonl"):
        assert unnamed(str(path), find_files(path, dataset("local"))) == []


HH = [f"{part}/{split}.jsonl.gz" for part in ("harmless-base", "helpful-base", "red-team-attempts") for split in
      ("train", "test")]  # fmt: skip
ULTRA = [f"data/{split}_{kind}-00000-of-00001.parquet" for split in ("train", "test") for kind in ("prefs", "sft")]


def test_repositories_are_read_in_their_own_layout() -> None:
    everything = choose([*HH, "README.md", "dataset_infos.json"], dataset("hh_rlhf"), {})
    assert everything == {"train": [HH[0], HH[2]], "test": [HH[1], HH[3]]}
    assert choose(HH, dataset("hh_rlhf", subset="helpful-base"), {}) == {"train": [HH[2]], "test": [HH[3]]}
    assert choose(ULTRA, dataset("ultrafeedback"), {}) == {"train": [ULTRA[0]], "test": [ULTRA[2]]}
    steer = ["edit/train.jsonl.gz", "preference/train.jsonl.gz", "preference/validation.jsonl.gz"]
    assert choose(steer, dataset("helpsteer3"), {}) == {"train": [steer[1]], "dev": [steer[2]]}
    reddit = [f"{name}/{split}.json" for name in ("askphysics", "legaladvice") for split in ("train", "test")]
    assert choose(reddit, dataset("shp", subreddit="legaladvice"), {}) == {"train": [reddit[2]], "test": [reddit[3]]}
    with pytest.raises(ConfigError, match=r"dataset\.subreddit=askphysic: no such part; nearest: askphysics"):
        choose(reddit, dataset("shp", subreddit="askphysic"), {})


@pytest.mark.parametrize(
    ("option", "kind"),
    [("hh_rlhf", HhRlhf), ("shp", Shp), ("ultrafeedback", UltraFeedback), ("helpsteer3", HelpSteer3)],
)
def test_schemas_match_their_options(option: str, kind: type) -> None:
    assert isinstance(dataset(option), kind)
    assert dataset(option).source == option


def test_the_shipped_rows_are_clean_and_enough() -> None:
    splits = load_splits(dataset("synthetic"))
    assert not splits.report.refused
    assert not splits.report.notes["prompt seen before"]
    counts = splits.report.kept
    assert counts["train"] >= 600
    assert min(counts["dev"], counts["test"]) >= 150
    subjects = [{pair.group for pair in part} for part in (splits.train, splits.dev, splits.test)]
    assert not subjects[0] & subjects[1] | subjects[0] & subjects[2] | subjects[1] & subjects[2]


def test_one_prompt_for_all_rows_says_what_to_do(tmp_path: Path) -> None:
    prompt = next(q for q in map("write a story {}".format, range(99)) if held_out(f"user: {q}", 0.1, 0.1) == "test")
    path = tmp_path / "rows.jsonl"
    path.write_text(
        "".join(json.dumps({"prompt": prompt, "chosen": f"a{i}", "rejected": f"b{i}"}) + "\n" for i in range(20))
    )
    with pytest.raises(DataError, match=r"held out: 0 dev, 20 test\n.*dataset\.test_fraction=0"):
        load_splits(dataset("local", path=str(path)))
    assert len(load_splits(dataset("local", path=str(path), dev_fraction=0, test_fraction=0)).train) == 20
