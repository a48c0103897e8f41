"""Typed schema of the group `evaluation`, and of the verbs that read run directories."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

from dpo.config import judges
from dpo.config.judges import Judges
from dpo.errors import ConfigError


class Split(Enum):
    """Which held-out pairs. Tune on dev, report on test."""

    test = "test"
    dev = "dev"


@dataclass
class Endpoint:
    """An OpenAI-compatible server that answers in place of the local model, such as vLLM with the adapter loaded.

    `key_variable` names the environment variable with the key; `timeout` is in seconds.
    """

    base_url: str | None = MISSING
    policy: str | None = MISSING
    baseline: str | None = MISSING
    key_variable: str = MISSING
    concurrency: int = MISSING
    timeout: float = MISSING


@dataclass
class Evaluation:
    """What is asked, how answers are drawn, and how sure the intervals are."""

    name: str = MISSING
    split: Split = MISSING
    pairs: int | None = MISSING
    prompts: int | None = MISSING
    prompts_file: str | None = MISSING
    samples_per_prompt: int = MISSING
    temperature: float = MISSING
    top_k: int = MISSING
    max_new_tokens: int | None = MISSING
    seed: int = MISSING
    batch_size: int | None = MISSING
    divergence_prompts: int = MISSING
    resamples: int = MISSING
    confidence: float = MISSING
    show: int = MISSING
    again: bool = MISSING
    endpoint: Endpoint = MISSING


@dataclass
class Evaluate:
    """`python -m dpo.evaluate run=DIR`."""

    run: str = MISSING
    evaluation: Evaluation = MISSING
    judge: Judges = field(default_factory=Judges)


class GoldIs(Enum):
    """Which verdict finds an answer with the gold label."""

    passed = "passed"
    failed = "failed"


@dataclass
class JudgeAnswers:
    """`python -m dpo.judge responses=FILE`, or `run=DIR`."""

    responses: str | None = MISSING
    prompts_file: str | None = MISSING
    text: str | None = MISSING
    gold: list[str] = MISSING
    gold_is: GoldIs = MISSING
    limit: int | None = MISSING
    out: str | None = MISSING
    run: str | None = MISSING
    name: str = MISSING
    resamples: int = MISSING
    confidence: float = MISSING
    seed: int = MISSING
    show: int = MISSING
    judge: Judges = field(default_factory=Judges)


@dataclass
class Compare:
    """`python -m dpo.compare runs=[DIR,DIR]`. `baseline` is the unaligned base and always takes part."""

    runs: list[str] = MISSING
    name: str = MISSING
    out: str | None = MISSING
    resamples: int = MISSING
    confidence: float = MISSING
    seed: int = MISSING
    show: int = MISSING


@dataclass
class Report:
    """`python -m dpo.report run=DIR` or `sweep=DIR`; both arrive as `run`."""

    run: str = MISSING
    name: str = MISSING
    show: int = MISSING


@dataclass
class Status:
    """`python -m dpo.status`."""

    root: str | None = MISSING
    watch: bool = MISSING
    every: float = MISSING
    limit: int | None = MISSING
    json: bool = MISSING


RANGES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "name": (lambda v: v.replace("-", "").replace("_", "").isalnum(), "letters, digits, dash and underscore"),
    "pairs": (lambda v: v >= 1, "at least 1, or null for all"),
    "prompts": (lambda v: v >= 1, "at least 1, or null for all"),
    "samples_per_prompt": (lambda v: 1 <= v <= 1000, "1 to 1000"),
    "temperature": (lambda v: 0 <= v <= 10, "0 (greedy) to 10"),
    "top_k": (lambda v: 1 <= v <= 10**6, "at least 1, at most 1000000"),
    "max_new_tokens": (lambda v: 1 <= v <= 10**6, "at least 1, at most 1000000, or null for the dataset's"),
    "seed": (lambda v: 0 <= v < 2**32, "0 to 4294967295"),
    "batch_size": (lambda v: 1 <= v <= 10**5, "at least 1, or null to size it from memory"),
    "divergence_prompts": (lambda v: v >= 0, "at least 0 (0: no KL)"),
    "resamples": (lambda v: 100 <= v <= 10**6, "at least 100, at most 1000000"),
    "confidence": (lambda v: 0.5 <= v < 1, "0.5 or more and below 1"),
    "show": (lambda v: v >= 0, "at least 0"),
    "every": (lambda v: 0.2 <= v <= 86400, "at least 0.2 seconds, at most a day"),
    "limit": (lambda v: v >= 1, "at least 1, or null for all"),
}


def check_ranges(node: Any, prefix: str = "") -> None:
    """Raise a ConfigError that names the keys of `node` (a dataclass) whose values cannot work, at most three."""
    faults = []
    for key, (holds, allowed) in RANGES.items():
        value = getattr(node, key, None)
        if value is not None and not holds(value):
            faults.append(f"{prefix}{key}={value}: must be {allowed}")
    endpoint = getattr(node, "endpoint", None)
    if endpoint is not None and not (1 <= endpoint.concurrency <= 1000 and 0 < endpoint.timeout <= 3600):
        faults.append(f"{prefix}endpoint: concurrency must be 1 to 1000, timeout above 0 and at most 3600 seconds")
    if endpoint is not None and endpoint.base_url is not None:
        faults += [
            f"{prefix}endpoint.{side}: needs the name {endpoint.base_url} knows that model by"
            for side in ("policy", "baseline")
            if getattr(endpoint, side) is None
        ]
    if faults:
        raise ConfigError("\n".join(faults[:3]))


def register() -> None:
    """Put the schemas of `evaluation` and `judge` into Hydra's ConfigStore; must run before a verb here composes."""
    store = ConfigStore.instance()
    store.store(group="evaluation", name="base_evaluation", node=Evaluation)
    judges.register()
