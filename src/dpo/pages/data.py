"""The report of a prepared dataset as a page: what was kept, what was not and why, lengths, cuts, examples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from dpo.data.prepare import Prepared
from dpo.data.remarks import few_held_out
from dpo.data.report import SPLITS
from dpo.pages import html
from dpo.pages.mixed import PART_COLUMNS, part_rows
from dpo.pages.plots import Placed, Plot
from dpo.pages.tables import number, share

Row = dict[str, Any]
BINS = 60
# As the borders of the examples.
COLOURS = {"prompt": "#78909c", "chosen": "#2a9d5c", "rejected": "#d4534c"}
SHOWN_IDS = 200
# As many as a phone holds beside each other.
QUANTILES = {"0": "min", "0.05": "5%", "0.5": "median", "0.95": "95%", "1": "max"}


def write_page(data: Prepared, path: Path) -> None:
    """Write the page; about 5 MB, of which the plots' library is nearly all."""
    report = data.report
    figures, placed = _plots(data)
    revision = f" at {report['revision']}" if report["revision"] else ""
    limit = "; stopped at the limit" if report["stopped_at_limit"] else ""
    html.write_page(
        path,
        "data.html",
        figures,
        title=f"Data: {report['source']}",
        subtitle=f"From {report['origin']}{revision}; fingerprint {report['fingerprint'][:16]}; at most "
        f"{report['max_length']} tokens a sequence{limit}.",
        rows=(["", *SPLITS], [[name, *(report[key][split] for split in SPLITS)] for name, key in COUNTED]),
        parts_of_mixture=(PART_COLUMNS, part_rows(report)) if report["parts"] else None,
        warnings=[*report["warnings"], *few_held_out(report)],
        checks=[(heading, _found(report[key])) for heading, key in CHECKS],
        lengths=[(split, _lengths(report["lengths"][split])) for split in SPLITS if report["lengths"][split]],
        bias=[_bias(split, report["length_bias"][split]) for split in SPLITS if report["length_bias"][split]],
        plots_placed=placed,
        cuts=[[name, cut["pairs"], cut["tokens"]] for name, cut in report["truncation"].items()],
        examples=report["examples"],
    )


COUNTED = (("read", "rows"), ("kept as pairs", "kept"))
CHECKS = (("Refused", "refused"), ("Noted, and kept", "noted"))


def _found(checks: Row) -> list[list[Any]]:
    """Why, how many rows, and their ids, of each check that found any."""
    rows = []
    for name, found in checks.items():
        if found["count"]:
            more = f", and {found['count'] - SHOWN_IDS} more in data.json" if found["count"] > SHOWN_IDS else ""
            rows.append([name, found["count"], ", ".join(map(str, found["ids"][:SHOWN_IDS])) + more])
    return rows


def _lengths(parts: Row) -> tuple[list[str], list[list[Any]]]:
    return ["", *QUANTILES.values()], [[part, *(values[q] for q in QUANTILES)] for part, values in parts.items()]


def _bias(split: str, bias: Row) -> str:
    mean, longer = (
        {"value": bias[key], "low": bias[f"{name}_low"], "high": bias[f"{name}_high"]}
        for key, name in (("mean_tokens", "mean"), ("chosen_longer", "chosen_longer"))
    )
    return (
        f"{split}: chosen minus rejected {number(mean, 1, True)} tokens; chosen is longer in {share(longer)} of "
        f"{bias['pairs']} pairs (95% intervals)."
    )


def _plots(data: Prepared) -> tuple[dict[str, Plot], Placed]:
    lengths = np.column_stack([data.train.lengths[:, 0], data.train.counted])
    longest = int(lengths.max()) if len(lengths) else 1
    edges = np.unique(np.linspace(0, longest + 1, BINS + 1).astype(int))
    parts = [
        {"type": "scatter", "mode": "lines", "line": {"shape": "hv", "color": COLOURS[part]}, "name": part,
         "x": edges[:-1].tolist(), "y": np.histogram(lengths[lengths[:, i] > 0, i], edges)[0].tolist()}
        for i, part in enumerate(COLOURS)
    ]  # fmt: skip
    pairs = lengths[(lengths[:, 1:] > 0).all(axis=1)].astype(int)
    counts, bounds = np.histogram(pairs[:, 1] - pairs[:, 2], BINS)
    bars = {
        "type": "bar",
        "marker": {"color": COLOURS["prompt"]},
        "x": ((bounds[:-1] + bounds[1:]) / 2).tolist(),
        "y": counts.tolist(),
    }
    axes = {"xaxis": {"title": {"text": "tokens"}}, "yaxis": {"title": {"text": "pairs"}, "rangemode": "tozero"}}
    drawn = {"lengths": {"data": parts, "layout": axes}}
    placed = [("lengths", "Tokens of training pairs", "")]
    if len(pairs):
        drawn["difference"] = {"data": [bars], "layout": axes}
        placed.append(("difference", "Chosen minus rejected", ""))
    return drawn, placed
