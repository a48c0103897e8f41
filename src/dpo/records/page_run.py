"""report.html of one run: what it did, whether that worked, at what cost, and how sure one can be."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from dpo.records.defaults import changed_settings, default_settings
from dpo.records.figures import Figure, Placed, cost_figures, evaluation_figures, training_figures
from dpo.records.headline import COLUMNS, caption, figure_rows, notes
from dpo.records.html import write_page
from dpo.records.read import RunFiles, json_file, json_lines, pick, read_pairs, read_run, read_samples
from dpo.records.tables import clock
from dpo.records.verdicts import findings

Row = dict[str, Any]
LENGTHS = ("0.05", "0.5", "0.95", "1")


def write_run_page(folder: Path, evaluation: str, show: int) -> Path:
    """Write `<folder>/report.html`, with the evaluation of that name where there is one; returns its path."""
    run = read_run(folder)
    summary = json_file(folder / "evaluation" / evaluation / "summary.json") or None
    samples = read_samples(folder, evaluation) if summary else []
    training, training_placed = training_figures(run)
    held_out: dict[str, Figure] = {}
    held_out_placed: Placed = []
    if summary:
        divergence = json_lines(folder / "evaluation" / evaluation / "divergence.jsonl")
        held_out, held_out_placed = evaluation_figures(summary, samples, read_pairs(folder, evaluation), divergence)
    costs, costs_placed = cost_figures(run.ledger)
    return write_page(
        folder / "report.html",
        "run.html",
        {**training, **held_out, **costs},
        title=f"{folder.parent.name}/{folder.name}",
        subtitle=_subtitle(run),
        state=run.state,
        folder=str(folder),
        headline=_headline(summary),
        findings=findings(run, summary),
        training_plots=training_placed,
        evaluation_plots=held_out_placed,
        samples=pick(samples, show, summary["settings"]["seed"]) if summary else [],
        sample_count=len(samples),
        cost=cost_table(run.ledger),
        cost_plots=costs_placed,
        data=_data(run.data),
        settings=_settings(run),
        provenance=_provenance(run, summary),
    )


def _subtitle(run: RunFiles) -> str:
    record = run.record
    words = [f"step {record.get('step')} of {record.get('max_steps')}"]
    if record.get("reason"):
        words.append(str(record["reason"]))
    if run.config.get("model"):
        words.append(f"{run.config['model']['path']} on {run.config['dataset']['source']}")
    words.append(f"written {time.strftime('%Y-%m-%d %H:%M', time.gmtime())} UTC")
    return "; ".join(words)


def _headline(summary: Row | None) -> Row | None:
    if summary is None:
        return None
    # An interval stays in one piece where a narrow screen breaks the line.
    rows = [[row[0], *(cell.replace(", ", ",\xa0") for cell in row[1:])] for row in figure_rows(summary)]
    return {"columns": COLUMNS, "rows": rows, "notes": [caption(summary), *notes(summary)]}


def cost_table(ledger: Row) -> Row:
    """Columns, rows and a note on money, from ledger.json."""
    rows = []
    for name, phase in (ledger.get("phases") or {}).items():
        hits = f"{phase['hits']:.0f} of {phase['hits'] + phase['misses']:.0f}" if "hits" in phase else ""
        rows.append(
            [
                name,
                clock(phase["seconds"]),
                f"{phase.get('gpu_seconds', 0) / 3600:.2f}",
                f"{phase.get('peak_memory_mb', 0):,.0f}",
                f"{phase['pairs']:,.0f}" if "pairs" in phase else "",
                f"{phase['tokens']:,.0f}" if "tokens" in phase else "",
                hits,
            ]
        )
    total = float(ledger.get("seconds") or 0)
    rows.append(["all", clock(total), f"{float(ledger.get('gpu_seconds') or 0) / 3600:.2f}", "", "", "", ""])
    rate = float(ledger.get("hourly_rate") or 0)
    note = (
        f"{float(ledger.get('cost') or 0):.4f} at hardware.hourly_rate={rate:g} a device-hour, all attempts included."
        if rate
        else "No price: hardware.hourly_rate is 0. Times add up over all attempts, failed ones included."
    )
    joules = ledger.get("energy_joules")
    note += " Energy: " + ("no counter can be read here." if joules is None else f"{joules / 3600:.1f} Wh in all.")
    columns = ("phase", "time", "GPU-hours", "peak MB", "pairs", "tokens", "from the cache")
    return {"columns": columns, "rows": rows, "note": note}


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
    for title, key in (("Refused rows", "refused"), ("Noted, and kept", "noted")):
        found = [[name, entry["count"], ", ".join(map(str, entry["ids"][:5]))] for name, entry in
                 (report.get(key) or {}).items() if entry["count"]]  # fmt: skip
        tables.append({"title": title, "columns": ("why", "rows", "for example"), "rows": found or [["none", 0, ""]]})
    lengths = [
        [f"{split}, {part}", *(quantiles.get(q, "") for q in LENGTHS)]
        for split, parts in (report.get("lengths") or {}).items()
        for part, quantiles in parts.items()
    ]
    if lengths:
        tables.append({"title": "Lengths", "columns": ("tokens", "5%", "median", "95%", "longest"), "rows": lengths})
    bias = [
        [split, f"{b['mean_tokens']:+.1f} [{b['mean_low']:+.1f}, {b['mean_high']:+.1f}]", f"{b['chosen_longer']:.0%}"]
        for split, b in (report.get("length_bias") or {}).items()
        if b
    ]
    if bias:
        columns = ("split", "chosen minus rejected tokens", "chosen longer")
        tables.append({"title": "Is the better answer the longer one?", "columns": columns, "rows": bias})
    cut = [[name, entry["pairs"], entry["tokens"]] for name, entry in (report.get("truncation") or {}).items()]
    if cut:
        tables.append({"title": "Cut to fit", "columns": ("what", "pairs", "tokens"), "rows": cut})
    return {"words": words, "tables": tables}


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
