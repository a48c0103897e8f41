"""Typed schema of the group `judge`: one dataclass a judge; several at once are `judge=[rules,NAME]`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

from dpo.config.lora import Quantization


@dataclass
class RulesJudge:
    """The stated rule of dpo/evaluation/rules.py; its thresholds are part of the rule."""


class Structured(Enum):
    """Whether a server is asked for output by a JSON schema; auto: until it refuses that."""

    auto = "auto"
    always = "always"
    never = "never"


class Protocol(Enum):
    """What a language model is asked: which of two answers is better, or grades of one answer."""

    pairs = "pairs"
    rubric = "rubric"


@dataclass
class JudgeServer:
    """An OpenAI-compatible server that judges; `timeout` in seconds for one try, prices for a million tokens."""

    base_url: str | None = MISSING
    model: str | None = MISSING
    key_variable: str = MISSING
    structured: Structured = MISSING
    concurrency: int = MISSING
    requests_per_minute: float | None = MISSING
    timeout: float = MISSING
    retries: int = MISSING
    price_in: float | None = MISSING
    price_out: float | None = MISSING


@dataclass
class JudgeModel:
    """A causal language model that judges here, where no server is named."""

    path: str = MISSING
    revision: str = MISSING
    chat_template: str | None = MISSING
    quantization: Quantization | None = MISSING
    batch_size: int = MISSING


@dataclass
class LlmJudge:
    """A language model as judge."""

    ask: list[Protocol] = MISSING
    explain: bool = MISSING
    temperature: float = MISSING
    max_tokens: int = MISSING
    repeats: int = MISSING
    attempts: int = MISSING
    seed: int = MISSING
    server: JudgeServer = MISSING
    local: JudgeModel = MISSING


@dataclass
class HumanJudge:
    """People as judges, through a rating sheet."""

    folder: str | None = MISSING
    seed: int = MISSING


class Reading(Enum):
    """How a reward model reads prompt and answer."""

    chat = "chat"
    pair = "pair"


@dataclass
class RewardModelJudge:
    """A sequence-classification model whose output is a reward."""

    path: str = MISSING
    revision: str = MISSING
    label: str | None = MISSING
    reading: Reading = MISSING
    chat_template: str | None = MISSING
    quantization: Quantization | None = MISSING
    batch_size: int = MISSING


@dataclass
class InstructionsJudge:
    """IFEval's checkers; what they need stands in the prompts."""


@dataclass
class LmEvalJudge:
    """Tasks of lm-eval; `include` is a folder of further task YAMLs, `limit` in questions of each task."""

    tasks: list[str] = MISSING
    include: str | None = MISSING
    limit: int | None = MISSING
    few_shots: int | None = MISSING
    chat_template: bool = MISSING
    batch_size: int = MISSING


@dataclass
class ToneJudge:
    """Counts over the form of an answer; the lists it counts by are part of its definition."""


class ToxicityScorer(Enum):
    """What says how toxic an answer is."""

    words = "words"
    classifier = "classifier"


class Activation(Enum):
    """From a classifier's outputs to probabilities; auto: as its config says."""

    auto = "auto"
    sigmoid = "sigmoid"
    softmax = "softmax"


@dataclass
class ToxicityJudge:
    """Toxicity from 0 to 1; `threshold` and above is toxic. `path` and what follows it are the classifier's."""

    scorer: ToxicityScorer = MISSING
    threshold: float = MISSING
    path: str | None = MISSING
    revision: str = MISSING
    label: str | None = MISSING
    activation: Activation = MISSING
    quantization: Quantization | None = MISSING
    batch_size: int = MISSING


@dataclass
class Judges:
    """The judges asked for, by name."""

    rules: RulesJudge | None = None
    instructions: InstructionsJudge | None = None
    llm: LlmJudge | None = None
    human: HumanJudge | None = None
    reward_model: RewardModelJudge | None = None
    toxicity: ToxicityJudge | None = None
    tone: ToneJudge | None = None
    lm_eval: LmEvalJudge | None = None


# key -> (holds, what is allowed), as in dpo.config.parse.
RANGES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "judge.llm.temperature": (lambda v: 0 <= v <= 10, "0 (greedy) to 10"),
    "judge.llm.max_tokens": (lambda v: v >= 1, "at least 1"),
    "judge.llm.repeats": (lambda v: 1 <= v <= 100, "1 to 100"),
    "judge.llm.attempts": (lambda v: 1 <= v <= 100, "1 to 100"),
    "judge.llm.seed": (lambda v: 0 <= v < 2**31, "0 to 2147483647"),
    "judge.llm.server.base_url": (lambda v: v.startswith(("http://", "https://")), "a URL with http:// or https://"),
    "judge.llm.server.concurrency": (lambda v: 1 <= v <= 1000, "1 to 1000"),
    "judge.llm.server.requests_per_minute": (lambda v: v > 0, "above 0, or null"),
    "judge.llm.server.timeout": (lambda v: 0 < v <= 3600, "above 0 and at most 3600 seconds"),
    "judge.llm.server.retries": (lambda v: 0 <= v <= 100, "0 to 100"),
    "judge.llm.server.price_in": (lambda v: v >= 0, "at least 0, or null where it is not known"),
    "judge.llm.server.price_out": (lambda v: v >= 0, "at least 0, or null where it is not known"),
    "judge.llm.local.batch_size": (lambda v: v >= 1, "at least 1"),
    "judge.reward_model.batch_size": (lambda v: v >= 1, "at least 1"),
    "judge.toxicity.threshold": (lambda v: 0 < v <= 1, "above 0 and at most 1"),
    "judge.toxicity.batch_size": (lambda v: v >= 1, "at least 1"),
    "judge.lm_eval.limit": (lambda v: v >= 1, "at least 1, or null for all"),
    "judge.lm_eval.few_shots": (lambda v: 0 <= v <= 100, "0 to 100, or null for each task's own"),
    "judge.lm_eval.batch_size": (lambda v: v >= 1, "at least 1"),
    "judge.human.seed": (lambda v: 0 <= v < 2**32, "0 to 4294967295"),
}

JUDGES: dict[str, type] = {
    "rules": RulesJudge,
    "instructions": InstructionsJudge,
    "llm": LlmJudge,
    "human": HumanJudge,
    "reward_model": RewardModelJudge,
    "toxicity": ToxicityJudge,
    "tone": ToneJudge,
    "lm_eval": LmEvalJudge,
}


def register() -> None:
    """Put each judge's schema into Hydra's ConfigStore; must run before a verb with judges composes."""
    store = ConfigStore.instance()
    for name, node in JUDGES.items():
        store.store(group="judge", name=f"base_{name}", node={name: node})
