"""A comparison as rows of words, for the terminal and for pages, and as CSV."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from dpo.pages.headline import INDENT, nothing, nothing_of
from dpo.pages.tables import clock, number, percent, points, share, to_csv
from dpo.records.read import DASH

Row = dict[str, Any]
Table = tuple[list[str], list[list[str]]]
BASELINE = "baseline"
COST_NOTE = (
    "Money: hours x hardware.hourly_rate, a dash where that is 0. Energy: where a counter can be read. A point "
    "gained: one percentage point of the difference to the baseline by the judge that the choice is made by. "
    "Arithmetic: matrix products counted from tokens, the same on any machine; time and CPU time follow the engine and "
    "what else the machine does."
)
ALIKE = "no setting that decides what is computed differs between the runs"
AGAINST = f"{INDENT}against the baseline"


def difference_table(comparison: Row) -> Table:
    """A column a run, a row for each setting that decides what is computed and is not the same in all of them."""
    columns = ["", *(row["label"] for row in comparison["rows"][1:])]
    return columns, [[one["key"], *one["values"]] for one in comparison["differs"]]


def quality_table(comparison: Row) -> Table:
    """A column a run, a row a figure: accuracy, each judge's level, outcome against the baseline, length, KL."""
    rows = comparison["rows"]
    found = [
        ["implicit-reward accuracy", *("50% (ties)" if r["label"] == BASELINE else share(r["accuracy"]) for r in rows)],
        ["reward margin (beta x nats)", *("0" if r["label"] == BASELINE else number(r["margin"]) for r in rows)],
    ]
    for name, judge in comparison["judges"].items():
        level, change = (share, points) if judge["decides"] else (number, _signed)
        judged = [row["judges"][name] for row in rows]
        found += [
            [judge["label"] if judge["decides"] else f"score by {name}", *(level(j["level"]) for j in judged)],
            [AGAINST, "", *(change(j["difference"]) for j in judged[1:])],
            [f"{INDENT}wins / ties / losses", *_of_runs(judged, _outcomes)],
            [f"{INDENT}sign test p", *_of_runs(judged, lambda j: _p(j["sign_test_p"]))],
            [f"{INDENT}win rate", *_of_runs(judged, lambda j: share(j["win_rate"]))],
            [f"{INDENT}win rate at equal length", *_of_runs(judged, lambda j: share(j["length_controlled_win_rate"]))],
        ]
    found += [
        ["answer length (words)", *(number(row["words"], 1) for row in rows)],
        [AGAINST, *_of_runs(rows, lambda r: number(r["words_difference"], 1, True))],
        ["answers cut at the token limit", *(percent(row["truncated"]) for row in rows)],
        ["KL from the reference (nats an answer)", *("0" if r["label"] == BASELINE else number(r["kl"]) for r in rows)],
    ]
    return _columns(comparison), found


def figure_tables(comparison: Row) -> list[tuple[str, Table]]:
    """(judge, table) of what judges measured besides their verdict: a column a run, a row a figure."""
    found = []
    for name, judge in comparison["figures"].items():
        rows = []
        measured = [row["figures"][name] for row in comparison["rows"]]
        figures = [figure | {"of": [by_key[key] for by_key in measured]} for key, figure in judge["figures"].items()]
        for figure in figures:
            level, change = (share, points) if figure["share"] else (number, _signed)
            if nothing(m["level"] for m in figure["of"]):
                continue
            rows.append([figure["label"], *(level(m["level"]) for m in figure["of"])])
            if any(m["difference"] for m in figure["of"][1:]):
                rows.append([AGAINST, "", *(change(m["difference"]) for m in figure["of"][1:])])
        if names := nothing_of(figures, lambda figure: [m["level"] for m in figure["of"]]):
            rows.append([names, *("0" for _ in measured)])
        found.append((name, (_columns(comparison), rows)))
    return found


def _columns(comparison: Row) -> list[str]:
    return ["", *(row["label"] for row in comparison["rows"])]


def _of_runs(rows: list[Row], word: Callable[[Row], str]) -> list[str]:
    """A cell a run, and nothing for the baseline, which is the first."""
    return ["", *map(word, rows[1:])]


def _outcomes(judged: Row) -> str:
    counts = [judged[key] for key in ("wins", "ties", "losses")]
    return DASH if None in counts else " / ".join(map(str, counts))


def _p(value: float | None) -> str:
    return DASH if value is None else f"{value:.2g}"


def cost_table(comparison: Row) -> Table:
    """A column a run: what training it cost over all attempts, and what a point of its gain cost.

    Measuring a run is no cost of its method and has a line of its own; what the reference cache spared is in the time.
    """
    runs = comparison["rows"][1:]
    first = comparison["judge"]
    first = first if first and comparison["judges"][first]["decides"] else None
    gains = [100 * row["judges"][first]["difference"]["value"] if first else 0.0 for row in runs]
    costs = [row["cost"] for row in runs]

    def line(label: str, key: str, word: Callable[[float], str], zero: str = DASH, of: list[Row] = costs) -> list[str]:
        return [label, *(DASH if cost[key] is None else word(cost[key]) if cost[key] else zero for cost in of)]

    def a_point(label: str, key: str, word: Callable[[float], str]) -> list[str]:
        cells = [word(c[key] / g) if c[key] and g > 0 else DASH for c, g in zip(costs, gains, strict=True)]
        return [f"{INDENT}{label} a point gained", *cells]

    attempts = [f"{cost['attempts']} ({cost['unfinished_attempts']} not completed)" if cost["unfinished_attempts"] else
                str(cost["attempts"]) for cost in costs]  # fmt: skip
    rows = [
        line("training", "seconds", clock),
        line(f"{INDENT}of it spared by the reference cache", "saved_seconds", clock),
        a_point("minutes", "seconds", lambda seconds: f"{seconds / 60:.2f}"),
        line("evaluation, not in the others", "evaluation_seconds", clock),
        line("arithmetic (TFLOP)", "flops", lambda flops: f"{flops / 1e12:.3g}"),
        line(f"{INDENT}of it spared by the reference cache", "saved_flops", lambda flops: f"{flops / 1e12:.3g}"),
        a_point("TFLOP", "flops", lambda flops: f"{flops / 1e12:.3g}"),
        line("CPU-hours", "cpu_hours", "{:.2f}".format),
        line("GPU-hours", "gpu_hours", "{:.2f}".format),
        line("peak memory (MB)", "peak_memory_mb", "{:,.0f}".format),
        line("energy (Wh)", "watt_hours", "{:.1f}".format, "0"),
        line("money", "money", "{:.4f}".format),
        a_point("money", "money", "{:.4f}".format),
        ["attempts", *attempts],
    ]
    if any(cost["parents"] for cost in costs):
        whole = [cost["with_parents"] for cost in costs]
        rows += [
            ["built on", *(_built_on(cost["parents"]) for cost in costs)],
            line(f"{INDENT}training with it", "seconds", clock, of=whole),
            line(f"{INDENT}TFLOP with it", "flops", lambda flops: f"{flops / 1e12:.3g}", of=whole),
            line(f"{INDENT}CPU-hours with it", "cpu_hours", "{:.2f}".format, of=whole),
        ]
    return ["", *(row["label"] for row in runs)], rows


def _built_on(parents: list[Row]) -> str:
    counts = Counter(str(parent["what"]) for parent in parents)
    return ", ".join(what if count == 1 else f"{count} x {what}" for what, count in counts.items()) or DASH


def pairwise_table(comparison: Row) -> Table:
    """A row for every two runs: difference in accuracy and by each judge, first minus second."""
    columns = ["", "accuracy"]
    for name in comparison["judges"]:
        columns += [f"by {name}", "p (Holm)", "verdict"]
    rows = []
    for row in comparison["pairwise"]:
        cells = [f"{row['first']} minus {row['second']}", points(row["accuracy"])]
        for name, judge in comparison["judges"].items():
            judged = row["judges"][name]
            gap = judged["difference"]
            better = row["first"] if gap["low"] > 0 else row["second"] if gap["high"] < 0 else None
            verdict = "not distinguishable" if better is None else f"{better} is better"
            cells += [(points if judge["decides"] else _signed)(gap), f"{judged['adjusted_p']:.2g}", verdict]
        rows.append(cells)
    return columns, rows


def comparison_csv(comparison: Row) -> str:
    """One line a run; estimates as value, low, high."""
    rows = [_flat_row(row) for row in comparison["rows"]]
    columns = list(dict.fromkeys(key for row in rows for key in row))
    return to_csv(columns, rows)


def _flat_row(row: Row) -> Row:
    found: Row = {}

    def visit(node: Any, name: str) -> None:
        if isinstance(node, dict):
            for key, value in node.items():
                visit(value, f"{name}_{key}" if name else key)
        elif node is not None:
            found[name] = node

    visit(row, "")
    return found


def _signed(estimate: Row) -> str:
    return number(estimate, 2, True)
