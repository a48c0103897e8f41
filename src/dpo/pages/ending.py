"""How a verb ends: a sentence of what was found, what warns against believing it, and the commands that come next."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from dpo.errors import DpoError
from dpo.pages.finding import WARNING
from dpo.pages.findings import dev_pairs, findings
from dpo.pages.tables import number, points, share
from dpo.records.read import RunFiles, read_run, read_summary
from dpo.records.terminal import terminal
from dpo.statistics.intervals import wilson
from dpo.streams import clean

Row = dict[str, Any]
COMMAND = "python -m dpo."
MANY_CUT = 0.3
REPORT, SAMPLES = "report.html", 12
"""A run's page, and how many answers it shows."""
# The rule of the shipped rows says what those rows wanted, and nothing about other people's.
SYNTHETIC, RULES = "synthetic", "rules"
# Quoted: zsh takes brackets for a pattern of files.
JUDGE = "'judge=[llm]'"
DECIDE = ("llm", "reward_model", "human")


def end_training(folder: Path, evaluation: str = "test") -> None:
    """Write the page of a run that has trained, and say what its dev pairs show; the run is done whatever happens."""
    page = write_page(folder, evaluation)
    try:
        run = read_run(folder)
    except (OSError, DpoError) as error:
        print(f"what was found cannot be read: {str(error).splitlines()[0]}", file=sys.stderr)
        return
    say(terminal(), trained(run), warnings(run, None), after_training(run, page is not None))


def end_evaluation(folder: Path, evaluation: str) -> None:
    """Say what an evaluation of a run found; its page has been written."""
    run, summary = read_run(folder), read_summary(folder, evaluation)
    named = shlex.quote(str(folder))
    following = commands([f"chat {named}", f"export {named}", f"compare {named} OTHER_RUN"])
    source = (run.config.get("dataset") or {}).get("source")
    warned = [*warnings(run, summary), *cut(summary)]
    say(terminal(), evaluated(summary, source), warned, [_report(folder), *following])


def say(console: Console, verdict: str, warned: Iterable[str], following: Iterable[str]) -> None:
    """The lines, each broken between words only."""
    console.print(Text(clean(verdict), style="bold"))
    for line in warned:
        console.print(Text(clean(f"warning: {line}"), style="yellow"))
    for line in following:
        # A command is copied whole: the terminal may wrap it, nothing may cut it.
        console.print(Text(clean(line)), soft_wrap=True)


def trained(run: RunFiles) -> str:
    """What the dev pairs say of the last step against the first."""
    dev = [row for row in run.dev if {"loss", "rewards/accuracies"} <= row.keys()]
    if len(dev) < 2:
        return "trained; no dev pairs were held out, so nothing says yet whether it generalises."
    first, last = dev[0], dev[-1]
    count = dev_pairs(run)
    accuracy = last["rewards/accuracies"]
    known = wilson(accuracy * count, count).__dict__ if count else {"value": accuracy}
    direction = "fell" if last["loss"] < first["loss"] else "rose"
    return (
        f"on {count or 'the'} dev pairs the loss {direction} from {first['loss']:.3f} to {last['loss']:.3f}, and the "
        f"chosen answer gained on the rejected one in {share(known)} of them."
    )


def evaluated(summary: Row, source: str | None = SYNTHETIC) -> str:
    """What an evaluation found by the first judge that decides and fits rows of `source`, else by its pairs."""
    for name, judged in summary["judges"].items():
        if judged["decides"] and judged["difference"] and (name != RULES or source == SYNTHETIC):
            difference = judged["difference"]
            outcome = "better" if difference["low"] > 0 else "worse" if difference["high"] < 0 else None
            verdict = f"{outcome} than before by {name}" if outcome else f"not told apart from before by {name}"
            return (
                f"{verdict}: {judged['label']} {share(judged['baseline'])} before, {share(judged['policy'])} after, "
                f"{points(difference)} over {difference['n']} prompts."
            )
    pairs = summary["pairs"]
    return (
        f"on {pairs['pairs']} held-out pairs the chosen answer gained on the rejected one in "
        f"{share(pairs['accuracy'])}, margin {number(pairs['margin'])}. No judge that fits these rows decided about "
        f"the answers; {', '.join(DECIDE)} could: {COMMAND}judge RUN {JUDGE}."
    )


def cut(summary: Row) -> list[str]:
    """A line where many answers never ended, with the key that lets them."""
    answers, limit = summary["answers"], summary["settings"]["max_new_tokens"]
    count, total = answers["policy"].get("truncated") or 0, answers["answers"]
    if count <= MANY_CUT * total:
        return []
    more = f"evaluation.max_new_tokens={2 * limit} evaluation.name={summary['name']}-{2 * limit}"
    return [f"{count} of {total} answers were cut at {limit} tokens; {more} lets them end"]


def warnings(run: RunFiles, summary: Row | None) -> list[str]:
    """What the run's page warns of, in a line each."""
    return [f"{found.name}: {found.words}" for found in findings(run, summary) if found.level == WARNING]


def after_training(run: RunFiles, page: bool) -> list[str]:
    """The commands that come next; those that need test pairs only where there are some."""
    named = shlex.quote(str(run.folder))
    held_out = (run.data.get("kept") or {}).get("test")
    lines = [_report(run.folder)] if page else []
    return lines + commands(([f"evaluate {named}"] if held_out != 0 else []) + [f"chat {named}"])


def _report(folder: Path) -> str:
    return f"report: {folder / REPORT}"


def commands(words: list[str]) -> list[str]:
    """Lines that say what to run next; `words` begin with the verb."""
    return [f"next: {COMMAND}{line}" for line in words]


def write_page(folder: Path, evaluation: str) -> Path | None:
    """Write report.html of a run; None where it cannot be written, which takes nothing from a run that is done."""
    from dpo.pages.run import write_run_page

    try:
        return write_run_page(folder, evaluation, SAMPLES)
    except (OSError, DpoError) as error:
        print(f"report.html was not written: {str(error).splitlines()[0]}", file=sys.stderr)
        return None
