"""The report of a prepared dataset as one HTML file: nothing is loaded from anywhere, no text of a row can run."""

from __future__ import annotations

import base64
import hashlib
import json
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from dpo.data.prepare import Prepared
from dpo.data.report import SPLITS
from dpo.records.files import write_text

BINS = 60
# As the borders of the examples.
COLOURS = {"prompt": "#78909c", "chosen": "#22aa88", "rejected": "#cc4444"}
SHOWN_IDS = 200
# Runs behind plotly.js in the one script the page's policy allows, by its hash.
DRAW = """
const plots = JSON.parse(document.getElementById("plots").textContent);
for (const [id, plot] of Object.entries(plots)) {
  Plotly.newPlot(id, plot.data, plot.layout, {displayModeBar: false});
  // Also when the page gets its width after the plot was laid out.
  new ResizeObserver(() => Plotly.Plots.resize(id)).observe(document.getElementById(id));
}
"""


def write_page(data: Prepared, path: Path) -> None:
    """Write the page; about 5 MB, of which the plots' library is nearly all."""
    from jinja2 import Environment
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    script = get_plotlyjs() + DRAW
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    # "<" cannot end the element it stands in when it is written as an escape of JSON.
    plots = json.dumps(_plots(data)).replace("<", "\\u003c")
    source = resources.files("dpo.pages").joinpath("data.html.jinja").read_text(encoding="utf-8")
    page = Environment(autoescape=True).from_string(source)
    html = page.render(
        report=data.report,
        splits=SPLITS,
        shown=SHOWN_IDS,
        digest=digest,
        script=Markup(script),  # noqa: S704 - a library of ours and the lines above; no text of a row
        plots=Markup(plots),  # noqa: S704 - escaped just above
    )
    write_text(path, html)


def _plots(data: Prepared) -> dict[str, Any]:
    lengths = data.train.lengths
    longest = int(lengths.max()) if len(lengths) else 1
    edges = np.unique(np.linspace(0, longest + 1, BINS + 1).astype(int))
    parts = [
        {"type": "scatter", "mode": "lines", "line": {"shape": "hv", "color": COLOURS[part]}, "name": part,
         "x": edges[:-1].tolist(), "y": np.histogram(lengths[:, i], edges)[0].tolist()}
        for i, part in enumerate(COLOURS)
    ]  # fmt: skip
    difference = lengths[:, 1].astype(int) - lengths[:, 2]
    counts, bounds = np.histogram(difference, BINS)
    bars = {
        "type": "bar",
        "marker": {"color": COLOURS["prompt"]},
        "x": ((bounds[:-1] + bounds[1:]) / 2).tolist(),
        "y": counts.tolist(),
    }
    return {
        "lengths": {"data": parts, "layout": _layout("Tokens of training pairs", "tokens", "pairs")},
        "difference": {"data": [bars], "layout": _layout("Chosen minus rejected", "tokens", "pairs")},
    }


def _layout(title: str, x: str, y: str) -> dict[str, Any]:
    return {
        "title": {"text": title},
        "xaxis": {"title": {"text": x}},
        "yaxis": {"title": {"text": y}, "rangemode": "tozero"},
        "margin": {"t": 48, "r": 16, "l": 56},
        # Above the plot: beside it a phone has no room.
        "legend": {"orientation": "h", "y": 1.12},
        "height": 340,
    }
