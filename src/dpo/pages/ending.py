"""How a verb ends: a sentence of what was found, what warns against believing it, and the commands that come next."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from dpo.errors import DpoError
from dpo.pages import reward
from dpo.pages.evaluation_findings import undecided
from dpo.pages.finding import FEWEST, WARNING
from dpo.pages.findings import dev_pairs, findings
from dpo.pages.tables import counted, number, points, share
from dpo.records.judged import fitting
from dpo.records.read import RunFiles, read_run, read_summary
from dpo.records.terminal import terminal
from dpo.statistics.intervals import wilson
from dpo.streams import clean

Row = dict[str, Any]
COMMAND = "python -m dpo."
MANY_CUT = 0.3
REPORT, SAMPLES = "report.html", 12
"""A run's page, and how many answers it shows."""
# Quoted: zsh takes brackets for a pattern of files. With a server: the embedded model is no judge of others.
JUDGE = "'judge=[llm]' judge.llm.server.base_url=URL judge.llm.server.model=NAME"


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
    fit = fitting(summary["judges"], run.config)
    verbs = [] if fit else [f"judge {named} {JUDGE}"]
    verbs += [f"chat {named}", f"export {named}", f"compare {named} OTHER_RUN"]
    verbs = reward.following(named) if reward.is_reward(run) else verbs
    warned = [*warnings(run, summary), *cut(summary)]
    say(terminal(), evaluated(summary, fit), warned, [_report(folder), *commands(verbs)])


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
    drawn = [row for row in run.dev if {"reward", "kl"} <= row.keys()]
    if len(drawn) > 1:
        first, last = drawn[0], drawn[-1]
        return (
            f"on answers drawn for dev prompts the mean reward went from {first['reward']:.2f} to "
            f"{last['reward']:.2f}, at {last['kl']:.2f} nats of KL an answer."
        )
    dev = [row for row in run.dev if {"loss", "rewards/accuracies"} <= row.keys()]
    if len(dev) < 2:
        return "trained; no dev pairs were held out, so nothing says yet whether it generalises."
    first, last = dev[0], dev[-1]
    count = dev_pairs(run)
    accuracy = last["rewards/accuracies"]
    known = wilson(accuracy * count, count).__dict__ if count else {"value": accuracy}
    direction = "fell" if last["loss"] < first["loss"] else "rose"
    over = "the dev pairs" if count is None else counted(count, "dev pair")
    return (
        f"on {over} the loss {direction} from {first['loss']:.3f} to {last['loss']:.3f}, and the chosen answer gained "
        f"on the rejected one in {share(known)} of them{too_few(count, 'dev pair')}."
    )


def evaluated(summary: Row, fit: Sequence[str]) -> str:
    """What an evaluation found by the first of the judges that `fit` its rows, else by its pairs."""
    for name in fit:
        judged = summary["judges"][name]
        if difference := judged["difference"]:
            level, change = (share, points) if judged["decides"] else (number, number)
            outcome = "better" if difference["low"] > 0 else "worse" if difference["high"] < 0 else None
            verdict = f"{outcome} than before by {name}" if outcome else f"not told apart from before by {name}"
            verdict = verdict if difference["n"] >= FEWEST else f"no verdict by {name}"
            return (
                f"{verdict}: {judged['label']} {level(judged['baseline'])} before, {level(judged['policy'])} after, "
                f"{change(difference)} over {counted(difference['n'], 'prompt')}{too_few(difference['n'], 'prompt')}."
            )
    pairs = summary["pairs"]
    if summary["reward_model"]:
        return reward.verdict(pairs)
    return (
        f"on {counted(pairs['pairs'], 'held-out pair')} the chosen answer gained on the rejected one in "
        f"{share(pairs['accuracy'])}, margin {number(pairs['margin'])}{too_few(pairs['pairs'], 'pair')}. "
        f"{undecided(summary)}"
    )


def too_few(count: int | None, what: str) -> str:
    """What is to be said behind a figure of so few."""
    if count is None or count >= FEWEST:
        return ""
    return f"; {counted(count, what)} {'is' if count == 1 else 'are'} too few to say"


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
    then = reward.following(named)[:1] if reward.is_reward(run) else [f"chat {named}"]
    return lines + commands(([f"evaluate {named}"] if held_out != 0 else []) + then)


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
