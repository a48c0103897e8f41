"""Reading run directories: whole, half written, torn, and of a stranger."""

from __future__ import annotations

import hashlib
import json
from functools import partial
from pathlib import Path

import pytest
from hostile import change_run, write_run

from dpo.errors import CheckpointError, ConfigError
from dpo.pages.defaults import changed_settings, default_settings, flat
from dpo.pages.headline import COLUMNS, figure_rows, notes
from dpo.records.files import write_sealed
from dpo.records.read import json_lines, pick, read_run, read_samples, read_summary


def test_a_run_is_read_whole(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "r"))
    assert run.state == "complete"
    assert [row["step"] for row in run.dev] == [0, 5, 10, 15, 20]
    assert len(run.train) == 20
    assert run.evaluations == ["test"]
    assert run.config["dpo"]["beta"] == 0.2
    assert len(read_samples(tmp_path / "r", "test")) == 40


def test_half_written_and_foreign_folders(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no run\.json"):
        read_run(tmp_path)
    (tmp_path / "run.json").write_text('{"status": ')
    with pytest.raises(CheckpointError, match="not readable"):
        read_run(tmp_path)
    write_sealed(tmp_path / "run.json", {"status": "complete"})
    (tmp_path / "metrics.jsonl").write_bytes(b'{"kind": "train", "step": 1}\n\xff\xfe\n[1]\n{"kind": "tra')
    run = read_run(tmp_path)
    assert run.train == [{"kind": "train", "step": 1}]
    assert (run.ledger, run.data, run.config, run.evaluations) == ({}, {}, {}, [])
    with pytest.raises(ConfigError, match=r"python -m dpo\.evaluate"):
        read_summary(tmp_path, "test")


def test_code_in_a_config_is_only_text(tmp_path: Path) -> None:
    write_run(tmp_path / "r")
    trap = tmp_path / "trap"
    (tmp_path / "r" / "config.yaml").write_text(
        f"dpo: {{beta: 0.1}}\n_target_: os.system\n_args_: ['touch {trap}']\nname: ${{oc.env:HOME}}\n"
        "hydra: {callbacks: {x: {_target_: os.mkdir}}}\n"
    )
    config = read_run(tmp_path / "r").config
    assert config["_target_"] == "os.system"
    assert config["name"] == "${oc.env:HOME}"
    (tmp_path / "r" / "config.yaml").write_text("a: [1\n")
    with pytest.raises(ConfigError, match="not readable as YAML"):
        read_run(tmp_path / "r")
    assert not trap.exists()


@pytest.mark.parametrize("status", ["complete", "interrupted", "running"])
def test_a_config_that_is_not_the_runs_is_named_whatever_became_of_the_run(tmp_path: Path, status: str) -> None:
    path = write_run(tmp_path / "r") / "config.yaml"
    known = hashlib.sha256(path.read_bytes()).hexdigest()
    change_run(tmp_path / "r", status=status, config_sha256=known)
    assert read_run(tmp_path / "r").config["dpo"]["beta"] == 0.2
    path.write_text(path.read_text().replace("0.2", "0.3"))
    with pytest.raises(CheckpointError, match=r"config\.yaml: damaged or edited"):
        read_run(tmp_path / "r")


def test_picked_samples_depend_on_the_seed_alone(tmp_path: Path) -> None:
    samples = read_samples(write_run(tmp_path / "r"), "test")
    assert pick(samples, 3, 1) == pick(samples, 3, 1)
    assert pick(samples, 3, 1) != pick(samples, 3, 2)
    assert len(pick(samples, 99, 1)) == 40
    assert json_lines(tmp_path / "none") == []


def test_settings_as_a_diff_against_the_defaults() -> None:
    defaults = default_settings()
    assert defaults["dpo.beta"] == 0.1
    mine = {"dpo": {"beta": 0.5, "trainer": {}}, "extra": None, "options": {"dpo": "base_sigmoid"}}
    rows = {key: (default, value) for key, default, value in changed_settings(mine, defaults)}
    assert rows["dpo.beta"] == ("0.1", "0.5")
    assert rows["extra"] == ("-", "null")
    assert rows["seed"] == ("0", "-")
    assert "dpo.trainer" not in rows
    assert not any(key.startswith("options") for key in rows)
    assert flat({"a": {"b": [1], "c": {}}}) == {"a.b": [1], "a.c": {}}


def test_the_headline_has_every_figure_before_and_after(tmp_path: Path) -> None:
    summary = read_summary(write_run(tmp_path / "r"), "test")
    rows = figure_rows(summary)
    assert all(len(row) == len(COLUMNS) for row in rows)
    labels = [row[0].strip() for row in rows]
    for wanted in ("implicit-reward accuracy", "answers that meet the rule", "answer length (words)"):
        assert wanted in labels
    assert any("95% intervals" in line for line in notes(summary))


@pytest.mark.parametrize("name", ["run.json", "ledger.json", "data.json", "evaluation/test/summary.json"])
@pytest.mark.parametrize("damage", ["digit", "torn", "zeroed", "folder"])
def test_a_damaged_file_of_a_run_is_named_and_nothing_is_shown_from_it(tmp_path: Path, name: str, damage: str) -> None:
    run = write_run(tmp_path / "r")
    path = run / name
    write_sealed(path, json.loads(path.read_text()) | {"figure": 0.125})
    whole = path.read_bytes()
    path.unlink()
    if damage == "folder":
        path.mkdir()
    else:
        spoilt = {"digit": whole.replace(b"0.125", b"0.625"), "torn": whole[:-9], "zeroed": bytes(len(whole))}
        path.write_bytes(spoilt[damage])
    read = partial(read_summary, run, "test") if "summary" in name else partial(read_run, run)
    with pytest.raises(CheckpointError, match=path.name):
        read()


def test_a_run_that_has_trained_and_knows_nothing_of_its_pairs_is_named(tmp_path: Path) -> None:
    run = write_run(tmp_path / "r")
    change_run(run, status="running", id="r")
    write_sealed(run / "ledger.json", json.loads((run / "ledger.json").read_text()) | {"run": "r"})
    (run / "data.json").unlink()
    with pytest.raises(CheckpointError, match=r"data\.json: missing"):
        read_run(run)
