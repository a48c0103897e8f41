"""What DPO, RLHF and rounds cost of each other at equal quality: by hand, with intervals, never without the words."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hostile import write_run

from dpo.compare import compare
from dpo.config.evaluation import Compare
from dpo.evaluation.comparing.comparison import read_entries
from dpo.evaluation.comparing.methods import points
from dpo.evaluation.comparing.shares import cost_at

REWARD = {"what": "reward", "id": "rm", "folder": "x", "cost": {"flops": 30e12, "cpu_hours": 0.1, "seconds": 400.0}}


def made(
    root: Path, name: str, loss: str, flops: float, gain: float, parents: list[Any] | None = None, **more: Any
) -> Path:
    run = write_run(root / name / "r", gain=gain, **more)
    config = json.loads((run / "config.yaml").read_text())
    config["dpo"] = {"beta": 0.2, "loss": [loss], "batch_size": 8, **({"samples": 4} if loss == "rloo" else {})}
    config["seed"] = more.get("seed", 0)
    (run / "config.yaml").write_text(json.dumps(config))
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**record, "engine": "packed", "parents": parents or []}))
    phases = {"train": {"seconds": flops / 1e11, "flops": flops, "cpu_seconds": flops / 1e11, "peak_memory_mb": 900.0},
              "evaluate": {"seconds": 9e9, "flops": 1e20}}  # fmt: skip
    (run / "ledger.json").write_text(json.dumps({"phases": phases, "seconds": 60.0, "hourly_rate": 0.0, "cost": 0.0}))
    return run


def _config(out: Path, *runs: Path) -> Compare:
    return Compare([str(run) for run in runs], "test", str(out), 500, 0.95, 0, 4)


def test_the_cost_of_a_quality_by_hand() -> None:
    points = [(10.0, 0.5), (30.0, 0.9), (20.0, 0.45), (40.0, 0.8)]
    assert cost_at(points, 0.4, 0.3) == pytest.approx(5)
    assert cost_at(points, 0.5, 0.3) == pytest.approx(10)
    assert cost_at(points, 0.7, 0.3) == pytest.approx(20)  # the run in between was dearer and no better
    assert math.isnan(cost_at(points, 0.95, 0.3))


def test_a_share_at_equal_quality_with_its_interval_and_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dpo = made(tmp_path, "dpo", "sigmoid", 20e12, 0.5)
    rlhf = made(tmp_path, "rlhf", "rloo", 50e12, 0.3, [REWARD])
    out = compare(_config(tmp_path / "out", dpo, rlhf))
    found = json.loads((out / "comparison.json").read_text())["methods"]
    quality = {row["method"]: row["quality"]["value"] for row in found["methods"]}
    base = json.loads((out / "comparison.json").read_text())["rows"][0]["judges"]["rules"]["level"]["value"]
    assert quality["DPO"] > quality["RLHF"] > base
    [row] = found["against"]
    share = row["shares"]["flops"]
    # DPO is cut back to RLHF's quality; RLHF pays for its reward model.
    wanted = 20 * (quality["RLHF"] - base) / (quality["DPO"] - base)
    assert share["with_parents"]["value"] == pytest.approx(wanted / 80)
    assert share["given"]["value"] == pytest.approx(wanted / 50)
    assert share["with_parents"]["low"] < share["with_parents"]["value"] < share["with_parents"]["high"]
    assert row["at_quality"] == pytest.approx(quality["RLHF"])
    assert row["equal_length"]["n"] == 40
    assert "money" not in row["shares"]
    printed = " ".join(capsys.readouterr().out.split())
    page = " ".join((out / "report.html").read_text().replace("&nbsp;", " ").split())
    for text in (printed, page):
        assert "DPO (20 steps of 8 pairs, packed engine)" in text
        assert "RLHF (RLOO, 4 samples a prompt, 20 steps of 8 prompts, packed engine)" in text
        assert "with the reward model taken as given" in text
    # No share stands without what it is a share of.
    assert f"{100 * wanted / 80:.0f}%" in printed.split("at equal quality")[1].split("of RLHF (RLOO, 4 samples")[0]


def test_what_cannot_be_told_apart_says_so_and_how_many_prompts_would(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [made(tmp_path, "dpo", "sigmoid", 20e12, 0.3), made(tmp_path, "rlhf", "rloo", 50e12, 0.33, [REWARD])]
    found = json.loads((compare(_config(tmp_path / "out", *runs)) / "comparison.json").read_text())["methods"]
    [row] = found["against"]
    assert not row["told_apart"]
    half = (row["difference"]["high"] - row["difference"]["low"]) / 2
    if row["difference"]["value"]:
        assert row["prompts_to_tell"] == math.ceil(40 * (half / abs(row["difference"]["value"])) ** 2)
        assert f"about {row['prompts_to_tell']} prompts would tell" in " ".join(capsys.readouterr().out.split())
    assert "at equal quality" in " ".join(capsys.readouterr().out.split()) or row["shares"]


def test_seeds_are_one_point_and_rounds_a_method_of_their_own(tmp_path: Path) -> None:
    drawn = [{"what": "pairs", "id": f"pairs{i}", "cost": {"flops": 10e12}} for i in range(2)]
    runs = [
        made(tmp_path, "dpo1", "sigmoid", 20e12, 0.5, seed=1),
        made(tmp_path, "dpo2", "sigmoid", 24e12, 0.45, seed=2),
        made(tmp_path, "rlhf", "rloo", 50e12, 0.3, [REWARD]),
        made(tmp_path, "rounds", "sigmoid", 15e12, 0.4, drawn),
    ]
    found = points(read_entries(runs, "test"), "rules")
    assert [(point.method, len(point.labels)) for point in found] == [
        ("DPO", 2), ("RLHF", 1), ("rounds of on-policy DPO", 1),
    ]  # fmt: skip
    assert found[0].own["flops"] == 22e12
    assert found[2].whole["flops"] == 35e12
    assert "2 rounds" in found[2].how
    methods = json.loads((compare(_config(tmp_path / "out", *runs)) / "comparison.json").read_text())["methods"]
    assert [row["method"] for row in methods["against"]] == ["DPO", "rounds of on-policy DPO"]


def test_without_rlhf_among_the_runs_no_share_is_told(tmp_path: Path) -> None:
    runs = [made(tmp_path, "one", "sigmoid", 20e12, 0.5), made(tmp_path, "two", "ipo", 20e12, 0.4)]
    assert json.loads((compare(_config(tmp_path / "out", *runs)) / "comparison.json").read_text())["methods"] is None
