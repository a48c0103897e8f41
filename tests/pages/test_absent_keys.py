"""A run directory stays readable: whatever an earlier version did not write is absent, and shown as a dash."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hostile import write_run
from rich.console import Console

from dpo.compare import compare
from dpo.config.evaluation import Compare
from dpo.errors import CheckpointError, ConfigError
from dpo.evaluation.comparing.comparison import SHARED, SHARED_SETTINGS, read_entries
from dpo.evaluation.comparing.comparison import compare as compare_entries
from dpo.evaluation.show import show
from dpo.evaluation.tracked import figures
from dpo.pages.compare import comparison_plots
from dpo.pages.comparison_tables import comparison_csv, cost_table, figure_tables, pairwise_table, quality_table
from dpo.pages.findings import findings
from dpo.pages.headline import figure_rows, notes
from dpo.pages.html import environment
from dpo.pages.plots import cost_plots, evaluation_plots, training_plots
from dpo.pages.run import cost_table as phases
from dpo.pages.run import write_run_page
from dpo.records.files import write_sealed
from dpo.records.overview import run_status
from dpo.records.read import ABSENT, Found, read_pairs, read_run, read_samples, read_summary

# Parts that stand or fall together.
WHOLE = {"value", "low", "high", "n", "confidence", "accuracy"}


def _paths(node: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every key of a JSON tree, as the way to it; an Estimate counts as one."""
    if isinstance(node, dict):
        for key, value in node.items():
            if not (key in WHOLE and "n" in node):
                yield (*path, key)
                yield from _paths(value, (*path, key))


def _without(tree: dict[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
    changed = copy.deepcopy(tree)
    node = changed
    for key in path[:-1]:
        node = node[key]
    del node[path[-1]]
    return changed


def _show_everything(folder: Path, other: Path) -> str:
    """All that is made of a run's files short of the pages' script, as one text."""
    run, summary = read_run(folder), read_summary(folder, "test")
    samples, pairs = read_samples(folder, "test"), read_pairs(folder, "test")
    with (folder / "shown.txt").open("w") as file:
        show(folder / "evaluation" / "test", 2, Console(file=file, width=200))
    text = [str(part) for part in (figure_rows(summary), notes(summary), findings(run, summary), phases(run.ledger))]
    for plots in (training_plots(run), evaluation_plots(summary, samples, pairs, []), cost_plots(run.ledger)):
        json.dumps(plots)
    text += [str(run_status(folder)), (folder / "shown.txt").read_text()]
    found = compare_entries(read_entries([other, folder], "test"), 100, 0.95, 0)
    json.dumps(found, allow_nan=False)
    text += [str(table(found)) for table in (quality_table, figure_tables, pairwise_table, cost_table, comparison_csv)]
    json.dumps(comparison_plots(found))
    return "\n".join(text)


def test_no_key_of_an_evaluation_is_needed(tmp_path: Path) -> None:
    older, other = write_run(tmp_path / "older" / "r"), write_run(tmp_path / "other" / "r")
    path = older / "evaluation" / "test" / "summary.json"
    whole = json.loads(path.read_text())
    ways = list(_paths(whole))
    assert len(ways) > 60
    assert ("figures",) in ways
    # What says that two evaluations measured the same thing cannot be guessed; those are refused below.
    same = {(key,) for key, _ in SHARED} | {("settings",)} | {("settings", key) for key in SHARED_SETTINGS}
    for way in ways:
        if way not in same:
            write_sealed(path, _without(whole, way))
            assert "{}" not in _show_everything(older, other), way


def test_no_key_of_ledger_data_or_record_is_needed(tmp_path: Path) -> None:
    older, other = write_run(tmp_path / "older" / "r"), write_run(tmp_path / "other" / "r")
    for name in ("ledger.json", "run.json"):
        whole = json.loads((older / name).read_text())
        for way in _paths(whole):
            if way != ("status",):
                write_sealed(older / name, _without(whole, way))
                _show_everything(older, other)
        write_sealed(older / name, whole)


def test_pages_of_an_evaluation_that_knows_little(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name / "r") for name in ("a", "b")]
    for run in runs:
        path = run / "evaluation" / "test" / "summary.json"
        summary = json.loads(path.read_text())
        for key in ("figures", "undecided", "divergence", "answers"):
            del summary[key]
        write_sealed(path, summary)
        samples = [
            json.loads(line) for line in (run / "evaluation" / "test" / "samples.jsonl").read_text().splitlines()
        ]
        for sample in samples:
            del sample["policy"]["finished"], sample["baseline"]["verdicts"]
        (run / "evaluation" / "test" / "samples.jsonl").write_text("".join(json.dumps(s) + "\n" for s in samples))
    page = write_run_page(runs[0], "test", 4).read_text()
    assert "KL was not measured." in page
    assert "<td>-</td>" in page
    out = compare(Compare([str(run) for run in runs], "test", str(tmp_path / "out"), 100, 0.95, 0, 4))
    assert "<td>-</td>" in (out / "report.html").read_text()


@pytest.mark.parametrize("key", [key for key, _ in SHARED])
def test_runs_that_do_not_say_what_they_measured_are_refused(tmp_path: Path, key: str) -> None:
    runs = [write_run(tmp_path / name / "r") for name in ("a", "b")]
    for run in runs:
        path = run / "evaluation" / "test" / "summary.json"
        write_sealed(path, _without(json.loads(path.read_text()), (key,)))
    with pytest.raises(ConfigError, match=r"a: its evaluation does not say[\s\S]*python -m dpo\.evaluate") as error:
        read_entries(runs, "test")
    assert len(str(error.value).splitlines()) == 2


def test_a_torn_summary_says_what_writes_it_anew(tmp_path: Path) -> None:
    run = write_run(tmp_path / "r")
    (run / "evaluation" / "test" / "summary.json").write_text('{"pairs": ')
    with pytest.raises(CheckpointError, match=r"not readable as JSON\npython -m dpo\.evaluate"):
        read_summary(run, "test")


def test_what_is_absent_is_a_dash_all_the_way_down() -> None:
    found = Found({"a": {"value": 1.0}})
    assert found["b"]["c"]["d"] is ABSENT
    assert not found["b"]
    assert list(found["b"].items()) == []
    assert f"{found['b']:.2f}" == str(found["b"]) == "-"
    assert environment().from_string("{{ x.y | string | clean }}").render(x=found) == "-"
    assert dict(figures(Found())) == {}
