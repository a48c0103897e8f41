"""The interface every judge fills: items in; verdicts with score, reason, cost and provenance out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from dpo.config.evaluation import Judges
from dpo.data.pair import Message
from dpo.errors import ConfigError
from dpo.evaluation import rules


@dataclass(frozen=True)
class Item:
    """One answer to judge. `id` is unique in a call; `subject` is what the prompt is about, where that is known."""

    id: str
    prompt: tuple[Message, ...]
    answer: str
    finished: bool
    subject: str | None = None

    @property
    def question(self) -> str:
        """The last user turn."""
        return next((m.content for m in reversed(self.prompt) if m.role == "user"), self.prompt[-1].content)


@dataclass(frozen=True)
class Verdict:
    """`score` in the judge's own unit, higher is better; `passed` for judges that decide, else None.

    `cost` is money in the currency of the judge's price list (0 for local judges); `provenance` says what decided:
    a rule and its version, a model and its revision.
    """

    id: str
    score: float
    passed: bool | None
    reason: str
    cost: float
    provenance: str

    @property
    def outcome(self) -> float:
        """What two answers to one prompt are compared by: the decision where there is one, else the score."""
        return self.score if self.passed is None else float(self.passed)


class Judge(Protocol):
    """A judge named as in conf/judge; `label` names its figure in tables, `definition` is printed beside it."""

    name: str
    label: str
    definition: str

    def judge(self, items: Sequence[Item]) -> list[Verdict]:
        """One verdict an item, in their order."""


class RuleJudge:
    """`judge: [rules]`: the stated rule; `reason` names the failed facets."""

    name = "rules"
    label = "answers that meet the rule"
    definition = rules.RULES

    def judge(self, items: Sequence[Item]) -> list[Verdict]:
        """See Judge."""
        verdicts = []
        for item in items:
            found = rules.check(item.question, item.answer, item.finished, item.subject)
            verdicts.append(
                Verdict(item.id, found.score, found.meets, ", ".join(found.failed), 0.0, "dpo.evaluation.rules")
            )
        return verdicts


def build_judges(config: Judges) -> list[Judge]:
    """The judges a config asks for, in the order of conf/judge."""
    judges: list[Judge] = []
    if config.rules is not None:
        judges.append(RuleJudge())
    if not judges:
        raise ConfigError("judge: none chosen; judge=[rules] needs nothing else")
    return judges
