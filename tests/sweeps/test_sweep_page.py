"""A sweep's page in a real Chromium: drawn whole, loads nothing, runs nothing of its jobs, fits a phone."""

from __future__ import annotations

import json
import re
from pathlib import Path

from hostile import change_run, hostile, write_sweep_folder
from test_html_pages import _body, _check, _open, visitors, wanted_width  # noqa: F401 - visitors is a fixture

from dpo.sweeps.answer import answer
from dpo.sweeps.files import read_sweep
from dpo.sweeps.plots import sweep_plots
from dpo.sweeps.report import report_sweep


def nine(root: Path, port: int) -> Path:
    """A 3 x 3 grid whose third key is hostile text, one job of it failed."""
    text = hostile(port)
    jobs = [
        (
            {"dpo.beta": beta, "lora.rank": rank, "dataset.path": text[(b + r) % 2]},
            0.1 + 0.1 * b + 0.05 * r,
            3.0 - b + r,
        )
        for b, beta in enumerate((0.05, 0.1, 0.3))
        for r, rank in enumerate((8, 16, 64))
    ]
    write_sweep_folder(root, jobs, port)
    change_run(root / "job4", status="failed", exit_code=3, reason=text[2])
    return root


def test_a_hostile_sweep_is_shown_and_nothing_of_it_runs(chromium: str, visitors, tmp_path: Path) -> None:  # noqa: F811
    port, asked = visitors
    page = report_sweep(nine(tmp_path / "sweep", port))
    dom, console = _open(chromium, page, tmp_path)
    _check(dom, console, asked, "sweep", samples=False)
    drawn = set(re.findall(r'<div id="(sweep-[^"]+)" class="js-plotly-plot"', _body(dom)))
    wanted = set(re.findall(r'<div id="(sweep-[^"]+)"', _body(dom)))
    assert drawn == wanted
    for name in ("accuracy", "wins-rules", "kl", "words", "minutes", "frontier-accuracy", "frontier-rules"):
        assert any(found.startswith(f"sweep-{name}") for found in drawn), name
    assert "Not complete" in dom
    assert "1 failed" in dom


def test_a_phone_needs_no_sideways_scrolling_for_a_sweep(chromium: str, tmp_path: Path) -> None:
    assert wanted_width(chromium, report_sweep(nine(tmp_path / "sweep", 9)), tmp_path) <= 390


def test_a_point_of_the_frontier_bears_its_values_and_has_its_name_under_the_pointer(tmp_path: Path) -> None:
    plots, placed = sweep_plots(answer(read_sweep(nine(tmp_path / "sweep", 9))))
    (points,) = [trace for trace in plots["sweep-frontier-rules"]["data"] if trace["name"] == "setting"]
    assert points["mode"] == "markers+text"
    assert sorted(text[:8] for text in points["text"])[:2] == ["0.05 / 1", "0.05 / 6"]
    assert max(map(len, points["text"])) < 32 < max(map(len, points["customdata"]))
    (note,) = [note for key, _, note in placed if key == "sweep-frontier-rules"]
    assert "At the points: beta / rank / path." in note
    assert len(set(points["textposition"])) == 4, "neighbours' names stand on different sides"
    (axis,) = [plot["layout"]["xaxis"] for key, plot in plots.items() if key == "sweep-frontier-rules"]
    assert axis["range"][1] > max(points["x"])


def test_what_rests_on_pairs_alone_is_no_good_answer(tmp_path: Path) -> None:
    root = nine(tmp_path / "sweep", 9)
    assert 'class="card finding good"' in report_sweep(root).read_text()
    for config in root.glob("*/config.yaml"):
        config.write_text(json.dumps(json.loads(config.read_text()) | {"dataset": {"source": "local"}}))
    page = report_sweep(root).read_text()
    assert 'class="card finding good"' not in page
    assert "judge rules is left out: it states what the synthetic rows want" in page
