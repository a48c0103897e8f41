"""What an evaluation says on the terminal: figures before and after with intervals, the rule, samples side by side."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from dpo.records.read import json_file, read_samples
from dpo.records.tables import clean, number, points, share, terminal, to_table

Row = dict[str, Any]


def show(folder: Path, samples: int, console: Console | None = None) -> None:
    """Print the evaluation in `folder` (`<run>/evaluation/<name>`), with `samples` prompts drawn by its seed."""
    console = console or terminal()
    run, summary = folder.parents[1], json_file(folder / "summary.json")
    console.print(figures(summary))
    for name, judged in summary["judges"].items():
        console.print(Text(f"judge {name}: {clean(judged['definition'])}", style="dim"))
    _explain(console, summary)
    if samples:
        _show_samples(console, pick(read_samples(run, folder.name), samples, summary["settings"]["seed"]))
    console.print(Text(f"run directory {run}; rows and samples in {folder}"), soft_wrap=True)


def figures(summary: Row) -> Any:
    """The table of figures, before and after."""
    pairs, answers = summary["pairs"], summary["answers"]
    base, policy = answers["baseline"], answers["policy"]
    rows = [
        [
            "implicit-reward accuracy",
            share(pairs["accuracy_before"]),
            share(pairs["accuracy"]),
            points(pairs["accuracy_gain"]),
        ],
        [
            "  per token of the answers",
            share(pairs["accuracy_before_per_token"]),
            share(pairs["accuracy_per_token"]),
            "",
        ],
        ["reward margin (beta x nats)", "0", number(pairs["margin"]), ""],
        ["chosen log-ratio (nats)", "0", number(pairs["chosen_log_ratio"], 1, True), ""],
        ["rejected log-ratio (nats)", "0", number(pairs["rejected_log_ratio"], 1, True), ""],
        ["calibration error", "", f"{pairs['calibration_error']:.2f}", ""],
    ]
    for name, judged in summary["judges"].items():
        level, change = (share, points) if judged["decides"] else (number, _signed)
        label = f"answers that meet {name}" if judged["decides"] else f"score by {name}"
        rows.append([label, level(judged["baseline"]), level(judged["policy"]), change(judged["difference"])])
        rows.append(
            [
                f"  wins / ties / losses by {name}",
                "",
                f"{judged['wins']} / {judged['ties']} / {judged['losses']}",
                f"sign test p = {judged['sign_test_p']:.2g}",
            ]
        )
        rows.append(["  win rate at equal length", "", share(judged["length_controlled_win_rate"]), ""])
    rows += [
        [
            "answer length (words)",
            number(base["words"], 1),
            number(policy["words"], 1),
            number(answers["words_difference"], 1, True),
        ],
        [
            "answers cut at the token limit",
            f"{base['truncated']} of {answers['answers']}",
            f"{policy['truncated']} of {answers['answers']}",
            "",
        ],
    ]
    if summary["divergence"] is not None:
        rows.append(["KL from the reference (nats an answer)", "0", number(summary["divergence"]["per_answer"]), ""])
    title = f"{summary['split']}: {pairs['pairs']} held-out pairs, {answers['prompts']} prompts answered by each side"
    return to_table(["", "before", "after", "difference"], rows, title)


def _signed(estimate: Row) -> str:
    return number(estimate, 2, True)


def _explain(console: Console, summary: Row) -> None:
    confidence = summary["settings"]["confidence"]
    lines = [
        f"[low, high]: {100 * confidence:.0f}% intervals, bootstrap over prompts (Wilson for shares of answers).",
        "accuracy before: pairs whose chosen answer the base model finds likelier (its implicit rewards are all 0, "
        "every pair a tie); after: pairs whose chosen answer gained more log-probability over the base than the "
        "rejected one.",
    ]
    if summary["settings"]["temperature"] > 0:
        lines.append(
            f"answers: temperature {summary['settings']['temperature']}, top {summary['settings']['top_k']}, at most "
            f"{summary['settings']['max_new_tokens']} tokens; both sides with the same random numbers."
        )
    for line in lines:
        console.print(Text(line, style="dim"))


def pick(samples: list[Row], count: int, seed: int) -> list[Row]:
    """`count` samples drawn by the seed alone: neither the best nor the worst are chosen."""
    return random.Random(seed).sample(samples, min(count, len(samples)))


def _word(verdict: Row) -> str:
    if verdict["passed"] is None:
        return f"{verdict['score']:.2f}"
    return "meets" if verdict["passed"] else f"fails {verdict['reason']}"


def _show_samples(console: Console, samples: list[Row]) -> None:
    rows = []
    for sample in samples:
        for name in ("baseline", "policy"):
            answer = sample[name]
            verdicts = "; ".join(f"{judge}: {_word(v)}" for judge, v in answer["verdicts"].items())
            end = "" if answer["finished"] else " [cut]"
            answer["shown"] = f"{answer['answer'].strip()}{end}\n({verdicts})"
        question = sample["messages"][-1]["content"]
        rows.append([question, sample["baseline"]["shown"], sample["policy"]["shown"]])
    table = to_table(["prompt", "before", "after"], rows, "samples, drawn at random")
    table.show_lines = True
    for column in table.columns:
        column.justify = "left"
        column.ratio = 2
    table.columns[0].ratio = 1
    console.print(table)
