"""`judge=[rules]`: the stated rule of dpo/evaluation/rules.py."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from dpo.config.judges import RulesJudge
from dpo.evaluation import rules
from dpo.evaluation.judges.interface import Item, Judge, Verdict


class RuleJudge(Judge):
    """Passes an answer that has every facet; `reason` names the failed ones."""

    name = "rules"
    label = "answers that meet the rule"
    definition = rules.RULES
    # The rule is its code: any change of it makes verdicts anew.
    fingerprint = hashlib.sha256(Path(rules.__file__).read_bytes()).hexdigest()[:16]

    def judge(self, items: Sequence[Item]) -> Iterator[list[Verdict]]:
        """See Judge."""
        verdicts = []
        for item in items:
            found = rules.check(item.question, item.answer, item.finished, item.subject)
            reason = ", ".join(found.failed)
            verdicts.append(Verdict(item.id, found.score, found.meets, reason, 0.0, "dpo.evaluation.rules"))
        yield verdicts


def build(settings: RulesJudge) -> RuleJudge:
    """The rule has no settings."""
    return RuleJudge()
