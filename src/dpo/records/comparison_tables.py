"""A comparison as rows of words, for the terminal and for pages, and as CSV."""

from __future__ import annotations

from typing import Any

from dpo.records.tables import clock, number, points, share, to_csv

Row = dict[str, Any]


def quality_table(comparison: Row) -> tuple[list[str], list[list[str]]]:
    """A column a figure: accuracy, each judge's level, outcome against the baseline, length, KL."""
    columns = ["run", "implicit-reward accuracy"]
    for name, judge in comparison["judges"].items():
        columns += [judge["label"] if judge["decides"] else f"score by {name}", "against the baseline",
                    "win / tie / lose", "win rate at equal length", "sign test p"]  # fmt: skip
    columns += ["words", "cut", "KL (nats)"]
    rows = []
    for row in comparison["rows"]:
        cells = [row["label"], "50% (ties)" if row["accuracy"] is None else share(row["accuracy"])]
        for name, judge in comparison["judges"].items():
            judged = row["judges"][name]
            level, change = (share, points) if judge["decides"] else (number, _signed)
            cells.append(level(judged["level"]))
            if "difference" in judged:
                cells += [
                    change(judged["difference"]),
                    f"{judged['wins']} / {judged['ties']} / {judged['losses']}",
                    share(judged["length_controlled_win_rate"]),
                    f"{judged['sign_test_p']:.2g}",
                ]
            else:
                cells += [""] * 4
        cells += [number(row["words"], 1), f"{row['truncated']:.0%}", number(row["kl"]) if row["kl"] else ""]
        rows.append(cells)
    return columns, rows


def cost_table(comparison: Row) -> tuple[list[str], list[list[str]]]:
    """What each run cost, all attempts included, and what a point of its gain by the first judge cost."""
    columns = ["run", "time", "GPU-hours", "peak MB", "Wh", "money", "attempts", "minutes a point gained"]
    rows = []
    for row in comparison["rows"]:
        cost = row["cost"]
        if cost is None:
            continue
        gains = [100 * judged["difference"]["value"] for judged in row["judges"].values() if "difference" in judged]
        seconds = cost["seconds"] or 0.0
        rows.append(
            [
                row["label"],
                clock(seconds),
                f"{cost['gpu_hours']:.2f}",
                "" if cost["peak_memory_mb"] is None else f"{cost['peak_memory_mb']:,.0f}",
                "unknown" if cost["watt_hours"] is None else f"{cost['watt_hours']:.1f}",
                f"{cost['money'] or 0:.4f}",
                str(cost["attempts"]),
                f"{seconds / 60 / gains[0]:.2f}" if gains and gains[0] > 0 else "-",
            ]
        )
    return columns, rows


def pairwise_table(comparison: Row) -> tuple[list[str], list[list[str]]]:
    """Every two runs: difference in accuracy and by each judge, first minus second."""
    columns = ["first", "second", "accuracy"]
    for name in comparison["judges"]:
        columns += [f"by {name}", "p (Holm)", "verdict"]
    rows = []
    for row in comparison["pairwise"]:
        cells = [row["first"], row["second"], points(row["accuracy"])]
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
