"""Mixtures: shares by a hash, no prompt on two sides, everything told part by part, caches of the parts reused."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
from data_options import dataset
from tokenizer_families import chatml

from dpo.config.checks.mixture import parts_of, resolve
from dpo.config.parse import plain
from dpo.config.read import config_yaml, read_config
from dpo.config.schema import Config
from dpo.data.prepare import Prepared, prepare
from dpo.data.report import SPLITS
from dpo.data.sources.fields import prompt_key
from dpo.errors import ConfigError


def write(path: Path, numbers: Any, word: str = "good") -> str:
    rows = [{"prompt": f"Question {i}?", "chosen": f"{word} {i}", "rejected": f"bad {i}"} for i in numbers]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def parts(tmp_path: Path) -> dict[str, dict[str, Any]]:
    """Three parts of rows of one's own; prompts 90 to 99 are in two of them, with other answers."""
    return {
        "mine": {"source": "local", "path": write(tmp_path / "mine.jsonl", range(100))},
        "theirs": {"source": "local", "path": write(tmp_path / "theirs.jsonl", range(90, 150), "fine")},
        "more": {"source": "local", "path": write(tmp_path / "more.jsonl", range(200, 230))},
    }


def mixed(tmp_path: Path, overrides: dict[str, Any], **values: Any) -> Prepared:
    made = dataset("mixture", parts=list(overrides), overrides=overrides, **values)
    return prepare(made, chatml(), tmp_path / "cache")


def test_shares_come_from_a_hash_and_what_is_used_adds_up(parts: dict[str, Any], tmp_path: Path) -> None:
    both = {name: parts[name] for name in ("mine", "theirs")}
    data = mixed(tmp_path, both, weights=[0.75, 0.25])
    of = data.report["parts"]
    used = {name: part["used"]["train"] for name, part in of.items()}
    assert used["mine"] == of["mine"]["kept"]["train"]  # it runs out first
    assert used["theirs"] == used["mine"] // 3
    assert used["theirs"] < of["theirs"]["kept"]["train"]
    for part in of.values():
        refused = sum(found["count"] for found in part["refused"].values())
        assert sum(part["rows"].values()) == refused + sum(part["kept"].values())
    for split in SPLITS:
        ids = [pair.id for pair in getattr(data, split)]
        assert ids == [pair.id for pair in data.pairs[split]]
        assert data.report["kept"][split] == len(ids) == sum(part["used"][split] for part in of.values())
        assert {name: sum(i.startswith(f"{name}:") for i in ids) for name in of} == {
            name: part["used"][split] for name, part in of.items()
        }
    # The same again elsewhere, in another order of nothing but the hash; and a sample at its start.
    again = prepare(dataset("mixture", parts=list(both), overrides=both, weights=[3, 1]), chatml(), tmp_path / "other")
    assert again.fingerprint == data.fingerprint
    assert len({pair.id.partition(":")[0] for pair in list(data.train)[:12]}) == 2
    first = mixed(tmp_path, both, weights=[0.75, 0.25], limit=9)
    assert [pair.id for pair in first.train] == [pair.id for pair in data.train][:9]


def test_no_prompt_is_on_two_sides_whichever_part_it_is_from(parts: dict[str, Any], tmp_path: Path) -> None:
    # The same prompts, held out by one part and trained on in the other.
    parts["mine"] |= {"dev_fraction": 0.0, "test_fraction": 0.0}
    parts["theirs"] |= {"dev_fraction": 0.45, "test_fraction": 0.5}
    data = mixed(tmp_path, parts)
    prompts = {split: {prompt_key(pair.prompt) for pair in data.pairs[split]} for split in SPLITS}
    assert not prompts["train"] & prompts["dev"]
    assert not (prompts["train"] | prompts["dev"]) & prompts["test"]
    leaks = data.report["parts"]["mine"]["refused"]["prompt is held out"]
    held = [i for i in range(90, 100) if f"user: Question {i}?" in prompts["dev"] | prompts["test"]]
    assert sorted(int(row.rpartition(":")[2]) for row in leaks["ids"]) == held
    assert len(held) >= 5
    assert data.report["refused"]["prompt is held out"]["count"] == len(held)


def test_another_part_leaves_the_others_where_they_were(parts: dict[str, Any], tmp_path: Path) -> None:
    both = {name: parts[name] for name in ("mine", "theirs")}
    before = mixed(tmp_path, both, weights=[0.5, 0.5])
    made = dataset("mixture", parts=list(parts), overrides=parts, weights=[0.4, 0.4, 0.2])
    ready = {path.name for path in (tmp_path / "cache").iterdir() if path.is_dir()}
    after = prepare(made, chatml(), tmp_path / "cache")
    added = {path.name for path in (tmp_path / "cache").iterdir() if path.is_dir()} - ready
    assert len(added) == 2  # the new part's entry and the mixture's
    assert all(prepare(part, chatml(), tmp_path / "cache").cached for part in parts_of(made).values())
    old, new = ([pair.id for pair in data.train if not pair.id.startswith("more")] for data in (before, after))
    few, many = sorted((old, new), key=len)
    assert [one for one in many if one in set(few)] == few  # a smaller share is part of a larger one, in one order


def test_a_contradiction_between_parts_takes_both(parts: dict[str, Any], tmp_path: Path) -> None:
    turned = tmp_path / "turned.jsonl"
    turned.write_text(json.dumps({"prompt": "Question 3?", "chosen": "bad 3", "rejected": "good 3"}) + "\n")
    own = {"dev_fraction": 0.0, "test_fraction": 0.0}
    data = mixed(tmp_path, {"mine": parts["mine"] | own, "turned": {"source": "local", "path": str(turned), **own}})
    refused = {name: part["refused"]["contradicts another pair"]["ids"] for name, part in data.report["parts"].items()}
    assert refused == {"mine": ["mine:train:3"], "turned": ["turned:train:0"]}
    assert len(data.train) == 99


FAULTS = [
    ({"parts": ["shp", "hh_rlh"]}, "dataset.parts: hh_rlh is no dataset; nearest: hh_rlhf"),
    ({"parts": ["shp", "shp"]}, "dataset.parts: shp stands there twice"),
    ({"parts": ["shp"], "weights": [1.0, 2.0]}, "dataset.weights: 2 for 1 parts"),
    ({"parts": ["shp"], "weights": [0.0]}, "dataset.weights=[0.0]: must be above 0"),
    ({"parts": ["shp"], "overrides": {"sph": {}}}, "dataset.overrides.sph: no such part; nearest: shp"),
    ({"parts": ["shp"], "overrides": {"shp": {"min_ration": 3}}}, "dataset.overrides.shp.min_ration: unknown key"),
    ({"parts": ["shp"], "overrides": {"shp": {"min_ratio": 0.5}}}, "dataset.overrides.shp.min_ratio=0.5: must be at"),
    ({"parts": ["shp"], "overrides": {"shp": {"max_length": 5}}}, "dataset.overrides.shp.max_length: one for all"),
    ({"parts": ["hub"]}, "dataset.overrides.hub.id: needs a value"),
    ({"parts": ["mixture"]}, "dataset.overrides.mixture.source=mixture: must be a dataset that reads rows"),
    ({"parts": ["shp"], "path": "x"}, "dataset.path: rows belong to a part"),
]


@pytest.mark.parametrize(("values", "line"), FAULTS, ids=[line for _, line in FAULTS])
def test_what_is_wrong_with_its_parts_is_named(values: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError) as raised:
        dataset("mixture", **values)
    assert str(raised.value).startswith(line)


def test_a_runs_config_says_all_of_every_part(compose: Callable[..., Config], tmp_path: Path) -> None:
    config = compose(
        "dataset=mixture", "dataset.parts=[hh_rlhf,shp]", "++dataset.overrides.shp.min_ratio=3", "dataset.keep=start",
        "dataset.soft_labels=true",
    )  # fmt: skip
    assert config.dataset.overrides["shp"]["min_ratio"] == 3.0
    assert config.dataset.overrides["hh_rlhf"]["dev_fraction"] == 0.01
    assert {part.keep.name for part in parts_of(config.dataset).values()} == {"start"}
    assert all(part.soft_labels for part in parts_of(config.dataset).values())
    (tmp_path / "config.yaml").write_text(config_yaml(config))
    assert plain(read_config(tmp_path / "config.yaml")) == plain(config)
    resolve(again := replace(config.dataset))
    assert again == config.dataset


def binarized(real_data: Path, folder: Path) -> Path:
    """The sample's rows in the form they have on the hub: message lists and scores."""
    path = folder / "ultrafeedback.jsonl"
    with gzip.open(real_data / "ultrafeedback" / "sample.jsonl.gz", "rt") as file, path.open("w") as out:
        for row in map(json.loads, file):
            sides = {
                side: [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row[side]}]
                for side in ("chosen", "rejected")
            }
            out.write(json.dumps({"prompt": row["prompt"], **sides, "score_chosen": 8.0, "score_rejected": 3.0}) + "\n")
    return path


def test_real_rows_of_two_datasets_train_and_are_measured_part_by_part(real_data: Path, tmp_path: Path) -> None:
    model = tiny.make_model(tmp_path / "model")
    words = [
        "model=custom", f"model.path={model}", "tracking=none", "hardware=cpu", "dpo.max_steps=2", "dpo.batch_size=4",
        "dataset=mixture", "dataset.parts=[hh_rlhf,ultrafeedback]", "dataset.weights=[0.7,0.3]",
        f"dataset.overrides.hh_rlhf.path={real_data / 'hh_rlhf' / 'helpful_base.jsonl.gz'}",
        f"dataset.overrides.ultrafeedback.path={binarized(real_data, tmp_path)}",
        "dataset.dev_fraction=0.1", "dataset.test_fraction=0.1", "dataset.limit=40", "dataset.max_length=256",
    ]  # fmt: skip
    code, output = tiny.run("train", words, tmp_path)
    assert code == 0, output
    folder, record = tiny.record(tmp_path)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    dev = [row for row in rows if row["kind"] == "eval"]
    for name in ("hh_rlhf", "ultrafeedback"):
        assert f"  {name}: loss " in output
        assert all({f"{name}/loss", f"{name}/rewards/accuracies", f"{name}/logps/chosen"} <= row.keys() for row in dev)
    report = json.loads((folder / "data.json").read_text())
    count = {name: part["used"]["dev"] for name, part in report["parts"].items()}
    for row in dev:
        mean = sum(row[f"{name}/loss"] * n for name, n in count.items()) / sum(count.values())
        assert row["loss"] == pytest.approx(mean, rel=1e-5)
    assert {name: part["rows"] for name, part in report["parts"].items()} == {
        "hh_rlhf": {"train": 1000, "dev": 0, "test": 0},
        "ultrafeedback": report["parts"]["ultrafeedback"]["rows"],
    }
    code, output = tiny.run(
        "evaluate",
        [str(folder), "evaluation.prompts=6", "evaluation.max_new_tokens=4", "evaluation.resamples=100"],
        tmp_path,
    )
    assert code == 0, output
    summary = json.loads(next(folder.glob("evaluation/*/summary.json")).read_text())
    assert {name: part["pairs"]["pairs"] for name, part in summary["parts"].items()} == {
        name: part["used"]["test"] for name, part in report["parts"].items()
    }
    assert "ultrafeedback" in output.partition("loading")[2]
    assert record["fingerprints"]["data"] == report["fingerprint"]
