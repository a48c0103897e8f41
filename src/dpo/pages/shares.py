"""A comparison of methods in words: who is better, how surely, and what it cost of what."""

from __future__ import annotations

from typing import Any

from dpo.pages.tables import percent, points
from dpo.records.read import DASH

Row = dict[str, Any]
Table = tuple[list[str], list[list[str]]]
WORDS = {
    "flops": "operations",
    "cpu_hours": "CPU seconds",
    "gpu_hours": "device seconds",
    "seconds": "wall time",
    "peak_memory_mb": "peak memory",
    "watt_hours": "energy",
    "money": "money",
}
NOTE = (
    "A share is read at the lower of the two best qualities, along straight lines from the baseline at no cost through "
    "each method's runs; its interval is over prompts. Operations are counted from tokens; CPU and wall time are those "
    "of the engines named, on this machine, as they were built. More runs of other lengths make it surer."
)


def sentences(found: Row) -> list[str]:
    """Two of each method that was set against RLHF: quality, then cost at equal quality."""
    lines = []
    for row in found["against"]:
        method, other = f"{row['method']} ({row['how']})", f"RLHF ({row['rlhf']})"
        gap = f"{points(row['difference'])} by {found['judge']} over {row['difference']['n']} prompts"
        length = f"at equal length it wins {percent(row['equal_length']['value'])} {_ends(row['equal_length'])}"
        if row["told_apart"]:
            better = "better" if row["difference"]["value"] > 0 else "worse"
            lines.append(f"{method} is {better} than {other}: {gap}; {length}.")
        else:
            more = row["prompts_to_tell"]
            ask = f"; about {more} prompts would tell a difference of this size" if more else ""
            lines.append(f"{method} and {other} cannot be told apart: {gap}; {length}{ask}.")
        told = [
            f"{_share(of['with_parents'])} of its {WORDS[kind]}"
            for kind, of in row["shares"].items()
            if "with_parents" in of
        ]
        given = row["shares"].get("flops", {}).get("given")
        if told:
            apart = f" ({_share(given)} of the operations with the reward model taken as given)" if given else ""
            lines.append(
                f"at equal quality ({percent(row['at_quality'])}) {row['method']} cost {', '.join(told)} of "
                f"{other}{apart}."
            )
        else:
            lines.append(f"what {row['method']} cost of {other} is not known: neither gained on the baseline.")
    return lines


def curve(found: Row) -> Table:
    """A row a point, by method and KL: which one wins depends on the KL that is accepted."""
    rows = [
        [
            row["method"],
            row["how"],
            DASH if row["kl"] is None else f"{row['kl']:.2f}",
            f"{percent(row['quality']['value'])} {_ends(row['quality'])}",
            f"{row['words']:.0f}",
            _tera(row["with_parents"]["flops"]),
            _tera(row["cost"]["flops"]),
            _seconds(row["with_parents"]["cpu_hours"]),
        ]
        for row in sorted(found["methods"], key=lambda row: (row["method"], row["kl"] or 0.0))
    ]
    return (
        ["method", "how", "KL (nats)", "quality", "words", "TFLOP", "without what it is built on", "CPU seconds"],
        rows,
    )


def _share(estimate: Row) -> str:
    return f"{percent(estimate['value'])}{'' if estimate['low'] is None else ' ' + _ends(estimate)}"


def _ends(estimate: Row) -> str:
    return f"[{100 * estimate['low']:.0f}, {100 * estimate['high']:.0f}]"


def _tera(flops: float | None) -> str:
    return DASH if flops is None else f"{flops / 1e12:.3g}"


def _seconds(hours: float | None) -> str:
    return DASH if hours is None else f"{3600 * hours:,.0f}"
