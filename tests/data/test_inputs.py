"""Real rows train through every door, sweeps run, and trackers hold what was logged."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest
import tiny


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> Path:
    return tiny.make_model(tmp_path_factory.mktemp("model") / "model")


def start(model: Path, cwd: Path, *more: str) -> str:
    common = [
        "model=custom", f"model.path={model}", "tracking=none", "hardware=cpu", "dpo.max_steps=2", "dpo.batch_size=2",
    ]  # fmt: skip
    code, output = tiny.run("train", [*common, *more], cwd)
    assert code == 0, output
    return output


@pytest.mark.parametrize(
    ("dataset", "file", "extra"),
    [
        ("hh_rlhf", "hh_rlhf/harmless_base.jsonl.gz", []),
        ("local", "hh_rlhf/helpful_base.jsonl.gz", ["dataset.on_bad=drop"]),
        ("shp", "shp/askphysics.jsonl", ["dataset.test_fraction=0.2"]),
        ("local", "ultrafeedback/sample.jsonl.gz", ["dataset.on_bad=drop"]),
        ("local", "orca/orca_dpo_pairs_demo.csv", ["dataset.on_bad=drop"]),
    ],
)
def test_real_rows_train(real_data, model, tmp_path, dataset, file, extra):
    output = start(
        model, tmp_path, f"dataset={dataset}", f"dataset.path={real_data / file}", "dataset.limit=40", *extra
    )
    assert "step 2/2" in output
    folder, _ = tiny.record(tmp_path)
    assert json.loads((folder / "data.json").read_text())


def test_the_shipped_data_trains_and_no_test_prompt_is_in_training(model, tmp_path):
    start(model, tmp_path, "dataset=synthetic", "dataset.limit=20")
    import dpo.data.synthetic as package

    rows = {
        split: [
            json.loads(line) for line in (Path(package.__file__).parent / f"{split}.jsonl").read_text().splitlines()
        ]
        for split in ("train", "dev", "test")
    }
    assert len(rows["train"]) >= 600
    assert len(rows["dev"]) >= 150
    assert len(rows["test"]) >= 150
    for key in ("prompt", "subject"):
        for one, other in (("train", "dev"), ("train", "test"), ("dev", "test")):
            assert not {r[key] for r in rows[one]} & {r[key] for r in rows[other]}
    from dpo.evaluation.rules import check

    for row in [row for split in rows.values() for row in split]:
        assert check(row["prompt"], row["chosen"], True, row["subject"]).meets
        assert not check(row["prompt"], row["rejected"], row["rejected_finished"], row["subject"]).meets
        assert {"generator", "seed", "judge", "id"} <= set(row)


def test_an_offline_wandb_run_reads_back(model, tmp_path):
    pairs = tiny.make_pairs(tmp_path / "pairs.jsonl")
    more = [
        *tiny.arguments(model, pairs, "lora=lora"),
        "tracking=wandb",
        "tracking.project=check",
        "tracking.group=mine",
    ]
    code, output = tiny.run("train", [a for a in more if a != "tracking=none"], tmp_path)
    assert code == 0, output
    assert "wandb, offline" in output
    folder, _ = tiny.record(tmp_path)
    (offline,) = (folder / "wandb").glob("offline-run-*")
    wandb = Path(sys.executable).with_name("wandb")
    command = [wandb, "leet", "inspect", "--json", offline]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    text = done.stdout
    for name in ("train/loss", "train/rewards/margins", "eval/rewards/accuracies", "mine", "check", "lora"):
        assert name in text


def test_gzip_jsonl_of_your_own(model, tmp_path):
    pairs = tiny.make_pairs(tmp_path / "pairs.jsonl")
    with gzip.open(tmp_path / "pairs.jsonl.gz", "wb") as file:
        file.write(pairs.read_bytes())
    assert "step 2/2" in start(model, tmp_path, "dataset=local", f"dataset.path={tmp_path / 'pairs.jsonl.gz'}")
