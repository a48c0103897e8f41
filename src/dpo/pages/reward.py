"""What is shown of a reward model, which writes no answers: how often it is right, how surely, and what next."""

from __future__ import annotations

from typing import Any

from dpo.pages.finding import GOOD, UNKNOWN, WARNING, Finding
from dpo.pages.tables import number, percent, points
from dpo.pages.tables import share as in_share
from dpo.records.read import RunFiles

Row = dict[str, Any]
NOT_SHORTER = "where chosen is not the shorter answer"
CHANCE = 0.5


def is_reward(run: RunFiles) -> bool:
    """Whether a run trained a reward model."""
    return (run.config.get("dpo") or {}).get("loss") == ["reward"]


def rows(pairs: Row) -> list[list[str]]:
    """Label, before, after and difference; before it learned, all its rewards were 0."""
    return [
        ["reward accuracy", "50% (ties)", in_share(pairs["accuracy"]), points(pairs["accuracy_gain"])],
        [f"  {NOT_SHORTER}", "50% (ties)", in_share(pairs["accuracy_not_shorter"]), ""],
        ["reward margin", "0", number(pairs["margin"]), ""],
        ["calibration error", "", number(pairs["calibration_error"]), ""],
    ]


def notes(confidence: float) -> list[str]:
    """What the rows mean."""
    return [
        f"[low, high]: {percent(confidence)} intervals, bootstrap over prompts.",
        "reward accuracy: pairs whose chosen answer has the higher reward. The margin is what the model stakes on "
        "that, as log odds; the calibration error is how far the odds are from how often it is right.",
    ]


def verdict(pairs: Row) -> str:
    """The outcome of an evaluation in a sentence."""
    return (
        f"on {pairs['pairs']} held-out pairs the chosen answer has the higher reward in {in_share(pairs['accuracy'])}, "
        f"{NOT_SHORTER} in {in_share(pairs['accuracy_not_shorter'])}."
    )


def length_learned(summary: Row | None) -> Finding:
    """Whether what the model learned is more than that shorter answers were preferred."""
    name = "Length in the reward"
    even = summary["pairs"]["accuracy_not_shorter"] if summary else None
    if not summary or not even:
        return Finding(name, UNKNOWN, "Not evaluated.")
    every = summary["pairs"]["accuracy"]
    evidence = (f"accuracy {in_share(every)}; {NOT_SHORTER} {in_share(even)}, of {even['n']} prompts",)
    if every["low"] > CHANCE >= even["low"]:
        words = "Where chosen is not the shorter answer it cannot be told from guessing: much of it may be length."
        return Finding(name, WARNING, words, evidence)
    if even["low"] > CHANCE:
        return Finding(name, GOOD, "It is right also where length says otherwise.", evidence)
    return Finding(name, UNKNOWN, "It cannot be told from guessing on any pairs.", evidence)


def following(named: str) -> list[str]:
    """What comes next: commands that use the model."""
    return [
        f"train dpo=rloo dpo.reward={named}",
        f"judge ANOTHER_RUN judge=[reward_model] judge.reward_model.path={named}",
    ]
