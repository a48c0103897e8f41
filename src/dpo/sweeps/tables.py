"""A sweep's answer as rows of words, for the terminal and for its page, and as CSV."""

from __future__ import annotations

from typing import Any

from dpo.pages.tables import clock, number, points, share, to_csv

Row = dict[str, Any]


def job_table(found: Row, states: bool) -> tuple[list[str], list[list[str]]]:
    """Every job: figures where it has them, and its state where that is wanted and not all are complete."""
    judges, evaluated = found["judges"], found["basis"] == "evaluation"
    mixed = states and any(job["state"] != "complete" for job in found["jobs"])
    columns = ["job"]
    if not evaluated:
        columns.append("dev accuracy")
    else:
        columns += ["accuracy", *(f"wins by {name}" for name in judges), "KL (nats)", "words"]
    columns += ["time", "state"] if mixed else ["time"]
    rows = []
    for job in found["jobs"]:
        cells = [job["label"]]
        if not evaluated:
            cells.append("" if job["dev"] is None else share(job["dev"]))
        else:
            has = job["accuracy"] is not None
            cells.append(share(job["accuracy"]) if has else "")
            cells += [share(job["judges"][name]["win_rate"]) if name in job["judges"] else "" for name in judges]
            cells += [number(job["kl"]) if job["kl"] else "", number(job["words"], 1) if has else ""]
        cells.append("" if job["seconds"] is None else clock(job["seconds"]))
        rows.append([*cells, _state(job)] if mixed else cells)
    return columns, rows


def _state(job: Row) -> str:
    if job["state"] == "complete" or "evaluat" in job["state"] or job["step"] is None:
        return str(job["state"])
    return f"{job['state']}, step {job['step']} of {job['max_steps'] or '?'}"


def failures(found: Row) -> list[str]:
    """A line a job that is not complete: how it ended and why."""
    lines = []
    for job in found["jobs"]:
        if job["state"] == "complete":
            continue
        code = job["exit_code"]
        by = "" if not code else f" (signal {-code})" if code < 0 else f" (exit {code})"
        lines.append(f"{job['label']}: {job['state']}{by}{': ' + job['reason'] if job['reason'] else ''}")
    return lines


def best_table(found: Row) -> tuple[list[str], list[list[str]]]:
    """Every setting against the best, by what the choice was made by."""
    choice = found["choice"]
    change = points if choice.get("decides") else _signed
    columns = ["setting", choice["by"], "gain", "behind the best", "verdict"]
    rows = []
    for row in choice["against_best"]:
        level = f"{row['level']:.0%}" if choice["decides"] else f"{row['level']:.2f}"
        gap = row["behind_best"]
        verdict = "best" if gap is None else "worse" if row["distinguishable"] else "not told apart"
        rows.append([row["label"], level, change(row["gain"]), "" if gap is None else change(gap), verdict])
    return columns, rows


def seed_table(found: Row) -> tuple[list[str], list[list[str]]]:
    """How far figures move with the seed alone."""
    names = ["accuracy", *found["judges"]]
    columns = ["setting", "seeds", *names]
    return columns, [
        [row["label"], str(row["seeds"]), *(_level(found, name)(row["over_seeds"][name]) for name in names)]
        for row in found["settings"]
        if row["over_seeds"]
    ]


def _level(found: Row, name: str) -> Any:
    return share if name == "accuracy" or found["judges"][name]["decides"] else number


def sweep_csv(found: Row) -> str:
    """One line a job: swept values, state, figures as value, low, high."""
    rows = []
    for job in found["jobs"]:
        row: Row = {"job": job["label"], **job["values"]}
        row |= {key: job[key] for key in ("state", "exit_code", "reason", "step", "max_steps", "attempts")}
        for key in ("dev", "accuracy", "margin", "kl", "words"):
            row |= _flat(key, job[key])
        for name, judged in job["judges"].items():
            for key, estimate in judged.items():
                row |= _flat(f"{name}_{key}", estimate)
        rows.append(row | {key: job[key] for key in ("seconds", "gpu_hours", "money", "folder")})
    return to_csv(list(dict.fromkeys(key for row in rows for key in row)), rows)


def _flat(name: str, estimate: Row | None) -> Row:
    return {} if estimate is None else {f"{name}_{key}": estimate[key] for key in ("value", "low", "high")}


def _signed(estimate: Row) -> str:
    return number(estimate, 2, True)
