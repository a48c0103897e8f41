"""The judges by name, as in conf/judge."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dpo.config.judges import Judges
from dpo.evaluation.judges import instructions, llm, lm_eval, rules, tone, toxicity
from dpo.evaluation.judges.human import judge as human
from dpo.evaluation.judges.interface import AnyJudge
from dpo.evaluation.judges.reward import model as reward_model

# name -> function of the judge's settings; one that gives two kinds of verdict gives two judges. Modules listed here
# import nothing heavy at their top.
BUILDERS: Mapping[str, Callable[[Any], AnyJudge | Sequence[AnyJudge]]] = {
    "rules": rules.build,
    "instructions": instructions.build,
    "llm": llm.build,
    "human": human.build,
    "reward_model": reward_model.build,
    "toxicity": toxicity.build,
    "tone": tone.build,
    "lm_eval": lm_eval.build,
}


def build_judges(config: Judges) -> list[AnyJudge]:
    """The judges a config asks for, in the order of the table; raises ConfigError when one cannot work here."""
    judges: list[AnyJudge] = []
    for name, build in BUILDERS.items():
        if (settings := getattr(config, name)) is not None:
            built = build(settings)
            judges += built if isinstance(built, Sequence) else [built]
    return judges
