"""The report's findings on runs that really have the fault they name, and on ones that do not.

Training faults are trained for real; those of answers go through the judges and statistics of an evaluation.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny
from asked import asked

from dpo.data.pair import Message
from dpo.evaluation.answers import Prompt
from dpo.evaluation.judges.interface import Item, Judge, Verdict
from dpo.evaluation.verdicts import interval, judge_answers, summarise_answers, summarise_verdicts
from dpo.pages import evaluation_findings, training_findings
from dpo.pages.finding import GOOD, NOTE, WARNING
from dpo.records.read import RunFiles, read_run

PROMPTS = 120


def _train(folder: Path, pairs: Path, *more: str) -> RunFiles:
    """A real run on a tiny model."""
    command = tiny.arguments(tiny.make_model(folder / "model"), pairs, "hardware.precision=fp32", "lora=lora", *more)
    code, output = tiny.run("train", command, folder)
    assert code == 0, output
    return read_run(tiny.record(folder)[0])


def test_a_run_without_a_fault_gets_no_warning_about_its_training(trained: Path) -> None:
    run = read_run(trained)
    assert training_findings.reference_identity(run).level == GOOD
    assert training_findings.loss_moves(run).level == GOOD
    assert training_findings.overfitting(run).level != WARNING


def test_a_learning_rate_that_moves_nothing(tmp_path: Path) -> None:
    pairs = tiny.make_pairs(tmp_path / "pairs.jsonl")
    found = training_findings.loss_moves(_train(tmp_path, pairs, "dpo.learning_rate=1e-9"))
    assert (found.level, "stuck at its start value" in found.words) == (WARNING, True)
    assert "0.6931" in found.evidence[0]


def _by_heart(path: Path) -> Path:
    """Random preferences, few of them: they can be learned by heart only, and nothing of that holds on others."""
    draw = random.Random(1)
    with path.open("w") as file:
        for number in range(40):
            prompt = " ".join(draw.choices(tiny.WORDS, k=4)) + f" {tiny.WORDS[number % len(tiny.WORDS)]}"
            chosen, rejected = (" ".join(draw.choices(tiny.WORDS, k=6)) for _ in range(2))
            file.write(json.dumps({"prompt": prompt, "chosen": chosen, "rejected": rejected}) + "\n")
    return path


MANY = ("dataset.dev_fraction=0.5", "dpo.max_steps=40", "dpo.eval_every=10")


def test_training_pairs_learned_by_heart(tmp_path: Path) -> None:
    run = _train(tmp_path, _by_heart(tmp_path / "pairs.jsonl"), *MANY, "dpo.learning_rate=2e-2", "dpo.beta=1")
    found = training_findings.overfitting(run)
    assert (found.level, "Dev loss rose again" in found.words) == (WARNING, True), found


class _Judge(Judge):
    """Passes an answer by a rule over its words and a number of its own."""

    name, label, definition = "planted", "answers that pass", "a planted rule"

    def __init__(self, passes: Callable[[str, int, random.Random], bool]) -> None:
        self.passes, self.fingerprint = passes, f"{passes.__name__}-{random.random()}"

    def judge(self, items: Sequence[Item]) -> Iterator[list[Verdict]]:
        found = []
        for item in items:
            passed = self.passes(item.id.split(":")[0], len(item.answer.split()), random.Random(item.id))
            found.append(Verdict(item.id, float(passed), passed, "" if passed else "no", 0.0, "test"))
        yield found


def _summary(
    run: Path, passes: Callable[[str, int, random.Random], bool], words: dict[str, tuple[int, int]]
) -> dict[str, Any]:
    """The answers' and judges' part of an evaluation: one answer a side and prompt, of a random length in `words`."""
    prompts = {f"p{n}": Prompt(f"p{n}", (Message("user", f"{n}"),), [1], None) for n in range(PROMPTS)}
    draw = random.Random(5)
    answers = [
        {"side": side, "prompt": prompt, "sample": 0, "finished": True, "tokens": length,
         "answer": " ".join([side, *["word"] * (length - 1)])}
        for side in ("policy", "baseline")
        for prompt in prompts
        for length in [draw.randint(*words[side])]
    ]  # fmt: skip
    config = asked(run).evaluation
    judged = summarise_verdicts(answers, judge_answers(_Judge(passes), prompts, answers), prompts, interval(config))
    return {"answers": summarise_answers(answers, config), "judges": {"planted": judged}}


def _by_length(side: str, words: int, _: random.Random) -> bool:
    return words > 40


def _by_merit(side: str, words: int, draw: random.Random) -> bool:
    return draw.random() < (0.75 if side == "policy" else 0.35)


def _by_chance(side: str, words: int, draw: random.Random) -> bool:
    return draw.random() < 0.5


LONGER = {"policy": (25, 80), "baseline": (15, 60)}
ALIKE = {"policy": (15, 60), "baseline": (15, 60)}


@pytest.mark.parametrize(
    ("passes", "words", "length", "difference"),
    [
        (_by_length, LONGER, WARNING, GOOD),
        (_by_merit, LONGER, NOTE, GOOD),
        (_by_merit, ALIKE, GOOD, GOOD),
        (_by_chance, ALIKE, GOOD, NOTE),
    ],
)
def test_a_win_by_length_a_win_by_merit_and_no_win(
    run: Path, passes: Any, words: dict[str, tuple[int, int]], length: str, difference: str
) -> None:
    summary = _summary(run, passes, words)
    found = evaluation_findings.length_exploitation(summary)
    assert found.level == length, found
    assert ("longer answers explain it" in found.words) == (length == WARNING)
    unsure = evaluation_findings.noise("planted", summary["judges"]["planted"])
    assert unsure.level == difference, unsure
    assert ("may be noise" in unsure.words) == (difference == NOTE)
