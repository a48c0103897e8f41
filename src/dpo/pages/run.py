"""report.html of one run: what it did, whether that worked, at what cost, and how sure one can be."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from dpo.pages.defaults import changed_settings, default_settings
from dpo.pages.finding import GOOD, NOTE, UNKNOWN, WARNING
from dpo.pages.findings import findings
from dpo.pages.headline import COLUMNS, caption, figure_rows, notes
from dpo.pages.html import write_page
from dpo.pages.mixed import PART_COLUMNS, part_rows
from dpo.pages.plots import Placed, Plot, cost_plots, evaluation_plots, training_plots
from dpo.pages.tables import clock, number, share
from dpo.records.read import DASH, RunFiles, of_run, pick, read_pairs, read_rows, read_run, read_samples

Row = dict[str, Any]
GRAVITY = (WARNING, NOTE, GOOD, UNKNOWN)
SUBJECT = (("model", "path"), ("dataset", "source"))
LENGTHS = ("0.05", "0.5", "0.95", "1")


def write_run_page(folder: Path, evaluation: str, show: int) -> Path:
    """Write `<folder>/report.html`, with the evaluation of that name where there is one; returns its path."""
    run = read_run(folder)
    summary = of_run(folder / "evaluation" / evaluation / "summary.json", run.record, expected=False) or None
    samples = read_samples(folder, evaluation) if summary else []
    training, training_placed = training_plots(run)
    held_out: dict[str, Plot] = {}
    held_out_placed: Placed = []
    if summary:
        divergence = read_rows(folder, evaluation, "divergence")
        held_out, held_out_placed = evaluation_plots(summary, samples, read_pairs(folder, evaluation), divergence)
    costs, costs_placed = cost_plots(run.ledger)
    return write_page(
        folder / "report.html",
        "run.html",
        {**training, **held_out, **costs},
        title=f"{folder.parent.name}/{folder.name}",
        subtitle=_subtitle(run),
        state=run.state,
        folder=str(folder),
        headline=_headline(summary),
        # What needs a reader's decision before what went well.
        findings=sorted(findings(run, summary), key=lambda found: GRAVITY.index(found.level)),
        training_plots=training_placed,
        evaluation_plots=held_out_placed,
        samples=pick(samples, show, summary["settings"].get("seed", 0)) if summary else [],
        sample_count=len(samples),
        cost=with_forecast(cost_table(run.ledger), run.record.get("forecast")),
        cost_plots=costs_placed,
        data=_data(run.data),
        settings=_settings(run),
        provenance=_provenance(run, summary),
    )


def _subtitle(run: RunFiles) -> str:
    record = run.record
    words = [f"step {record['step']} of {record['max_steps']}" if record.get("max_steps") else "before its first step"]
    if record.get("reason"):
        words.append(str(record["reason"]))
    if run.config:
        names = [str((run.config.get(group) or {}).get(key) or DASH) for group, key in SUBJECT]
        words.append(" on ".join(names))
    words.append(f"written {time.strftime('%Y-%m-%d %H:%M', time.gmtime())} UTC")
    return "; ".join(words)


def _headline(summary: Row | None) -> Row | None:
    if summary is None:
        return None
    return {"columns": COLUMNS, "rows": figure_rows(summary), "notes": [caption(summary), *notes(summary)]}


def with_forecast(table: Row, forecast: Row | None) -> Row:
    """A cost table whose note also says what was expected of the training before it began."""
    if not forecast:
        return table
    seconds = forecast.get("seconds")
    time = f" in {seconds[0]:.0f} to {seconds[1]:.0f} s" if seconds else ""
    said = f" Forecast of the training: {forecast['train_flops'] / 1e12:.3g} TFLOP{time}."
    return {**table, "note": table["note"] + said}


def cost_table(ledger: Row) -> Row:
    """Columns, rows and a note on money and energy, from ledger.json; columns without an entry are left out."""
    phases, rate = ledger.get("phases") or {}, float(ledger.get("hourly_rate") or 0)
    devices = _devices(ledger)
    every: dict[str, list[str]] = {"phase": [*phases, "all"]}
    cpu = [phase["cpu_seconds"] for phase in phases.values() if "cpu_seconds" in phase]
    flops = [phase["flops"] for phase in phases.values() if "flops" in phase]
    totals = {"seconds": ledger.get("seconds"), "cpu_seconds": sum(cpu) if cpu else None,
              "flops": sum(flops) if flops else None,
              "gpu_seconds": ledger.get("gpu_seconds"),
              "energy_joules": ledger.get("energy_joules"), "cost": ledger.get("cost") if rate else None}  # fmt: skip
    entries = [{**phase, "cost": phase.get("seconds", 0) / 3600 * rate * devices or None} for phase in phases.values()]
    for name, key, word in (
        ("time", "seconds", clock),
        ("CPU time", "cpu_seconds", clock),
        ("TFLOP", "flops", lambda v: f"{v / 1e12:.3g}"),
        ("GPU-hours", "gpu_seconds", lambda v: f"{v / 3600:.2f}" if v else ""),
        ("peak MB", "peak_memory_mb", "{:,.0f}".format),
        ("energy (Wh)", "energy_joules", lambda v: f"{v / 3600:.2f}"),
        ("money", "cost", "{:.4f}".format),
        ("pairs", "pairs", "{:,.0f}".format),
        ("tokens", "tokens", "{:,.0f}".format),
    ):
        every[name] = [DASH if (v := entry.get(key)) is None else word(v) for entry in (*entries, totals)]
    every["from the cache"] = [
        f"{entry['hits']:.0f} of {entry['hits'] + entry['misses']:.0f}" if {"hits", "misses"} <= entry.keys() else DASH
        for entry in (*entries, totals)
    ]
    kept = {name: cells for name, cells in every.items() if set(cells) - {DASH, ""}}
    return {"columns": list(kept), "rows": [list(row) for row in zip(*kept.values(), strict=True)],
            "note": _cost_note(ledger, rate)}  # fmt: skip


def _devices(ledger: Row) -> float:
    """How many devices an hour was charged for; a CPU counts as one."""
    hours = float(ledger.get("seconds") or 0) / 3600 * float(ledger.get("hourly_rate") or 0)
    return float(ledger.get("cost") or 0) / hours if hours else 1.0


def _cost_note(ledger: Row, rate: float) -> str:
    joules = ledger.get("energy_joules")
    return (
        (f"Money: hours x hardware.hourly_rate={rate:g} a device." if rate else "No price: hardware.hourly_rate is 0.")
        + " All attempts are included, killed and failed ones too."
        + (" Energy: no counter can be read here." if joules is None else "")
    )


def _data(report: Row) -> Row | None:
    if not report:
        return None
    kept = report.get("kept") or {}
    words = (
        f"{report.get('source')} from {report.get('origin')}"
        f"{' at ' + str(report['revision']) if report.get('revision') else ''}: "
        + ", ".join(f"{count} {split}" for split, count in kept.items())
        + f" pairs of at most {report.get('max_length')} tokens."
    )
    tables = []
    read = report.get("rows") or {}
    if kept:
        counted = [[split, read.get(split, DASH), count] for split, count in kept.items()]
        tables.append({"title": "Rows", "columns": ("split", "read", "kept as pairs"), "rows": counted})
    if report.get("parts"):
        tables.append({"title": "Parts of the mixture", "columns": PART_COLUMNS, "rows": part_rows(report)})
    for title, key in (("Refused rows", "refused"), ("Noted, and kept", "noted")):
        found = [
            [name, entry["count"], ", ".join(map(str, entry["ids"][:5] if entry["ids"] else []))]
            for name, entry in (report.get(key) or {}).items()
            if entry["count"]
        ]
        tables.append({"title": title, "columns": ("why", "rows", "for example"), "rows": found})
    cut = [
        [name, entry["pairs"], entry["tokens"]]
        for name, entry in (report.get("truncation") or {}).items()
        if entry["pairs"]
    ]
    tables.append({"title": "Cut to fit", "columns": ("what", "pairs", "tokens"), "rows": cut})
    bias = [
        [split, number(_estimate(b, "mean_tokens", "mean"), 1, True), share(_estimate(b, "chosen_longer"))]
        for split, b in (report.get("length_bias") or {}).items()
        if b
    ]
    if bias:
        columns = ("split", "chosen minus rejected (tokens)", "chosen longer")
        tables.append({"title": "Is the better answer the longer one?", "columns": columns, "rows": bias})
    lengths = [
        [f"{split}, {part}", *(quantiles.get(q, DASH) for q in LENGTHS)]
        for split, parts in (report.get("lengths") or {}).items()
        for part, quantiles in parts.items()
    ]
    if lengths:
        tables.append({"title": "Lengths", "columns": ("tokens", "5%", "median", "95%", "longest"), "rows": lengths})
    return {"words": words, "tables": tables}


def _estimate(bias: Row, key: str, interval: str | None = None) -> Row:
    """A figure of the data report in the form of an estimate."""
    name = interval or key
    return {"value": bias[key], "low": bias[f"{name}_low"], "high": bias[f"{name}_high"]}


def _settings(run: RunFiles) -> Row:
    if not run.config:
        return {"note": "config.yaml is missing.", "rows": []}
    rows = changed_settings(run.config, default_settings())
    note = f"{len(rows)} settings differ from the defaults of python -m dpo.train; all of them are in config.yaml."
    return {"note": note, "rows": rows}


def _provenance(run: RunFiles, summary: Row | None) -> list[tuple[str, str]]:
    record = run.record
    git = record.get("git") or {}
    facts = {
        "folder": str(run.folder),
        "command": record.get("command"),
        "device": record.get("device"),
        "seed": record.get("seed"),
        "git": f"{git.get('commit')}{' with changes' if git.get('dirty') else ''}" if git else None,
        "model revision": record.get("revision"),
        "fingerprints": ", ".join(f"{key} {value}" for key, value in (record.get("fingerprints") or {}).items()),
        "held-out pairs": f"{summary['held_out']} ({summary['split']})" if summary else None,
        "attempts": "; ".join(_attempt(attempt) for attempt in record.get("attempts") or []),
        "versions": ", ".join(f"{key} {value}" for key, value in (record.get("versions") or {}).items()),
        "sweep": record.get("parent"),
    }
    return [(key, str(value)) for key, value in facts.items() if value is not None]


def _attempt(attempt: Row) -> str:
    started = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(attempt["started"]))
    took = f" after {clock(attempt['ended'] - attempt['started'])}" if attempt.get("ended") else ""
    return f"{started} UTC from step {max(0, attempt.get('from_step', 0))}: {attempt['status']}{took}"
