"""Typed schema of `python -m dpo.synthesize`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

from dpo.config import judges
from dpo.config.combinations import check_model
from dpo.config.folder import options
from dpo.config.hardware import Hardware
from dpo.config.judges import Judges
from dpo.config.model import Model
from dpo.errors import ConfigError


@dataclass
class SamplingConfig:
    """How answers are drawn."""

    temperature: float = MISSING
    top_k: int = MISSING
    max_new_tokens: int = MISSING
    batch_size: int = MISSING


@dataclass
class GeneratorEndpoint:
    """A model behind an OpenAI-compatible server. Prices are money for a million tokens; null: not known."""

    base_url: str = MISSING
    name: str = MISSING
    key_variable: str = MISSING
    concurrency: int = MISSING
    timeout: float = MISSING
    retries: int = MISSING
    price_in: float | None = MISSING
    price_out: float | None = MISSING


@dataclass
class Synthesize:
    """Prompts in, preference pairs out. `generator` is a Model or a GeneratorEndpoint."""

    prompts: str | None = MISSING
    out: str = MISSING
    n: int = MISSING
    seed: int = MISSING
    dev_pairs: int = MISSING
    test_pairs: int = MISSING
    sampling: SamplingConfig = MISSING
    generator: Any = MISSING
    judge: Judges = field(default_factory=Judges)
    hardware: Hardware = MISSING


def check(config: Synthesize) -> None:
    """Raise a ConfigError for values that cannot work, Refused for a model that would be unsafe."""
    sampling, generator = config.sampling, config.generator
    faults = [
        f"{key}={value}: must be {allowed}"
        for key, value, holds, allowed in (
            ("n", config.n, config.n >= 2, "at least 2: a pair is the best answer against the worst"),
            ("dev_pairs", config.dev_pairs, config.dev_pairs >= 0, "at least 0"),
            ("test_pairs", config.test_pairs, config.test_pairs >= 0, "at least 0"),
            ("sampling.temperature", sampling.temperature, 0 < sampling.temperature <= 10, "above 0, at most 10"),
            ("sampling.top_k", sampling.top_k, sampling.top_k >= 2, "at least 2"),
            ("sampling.max_new_tokens", sampling.max_new_tokens, sampling.max_new_tokens >= 1, "at least 1"),
            ("sampling.batch_size", sampling.batch_size, sampling.batch_size >= 1, "at least 1"),
        )
        if not holds
    ]
    if isinstance(generator, GeneratorEndpoint):
        if generator.concurrency < 1 or generator.timeout <= 0 or generator.retries < 0:
            faults.append("generator: concurrency must be at least 1, timeout above 0, retries at least 0")
    elif generator.adapter is not None:
        faults.append(f"generator.adapter={generator.adapter}: not read here; merge it and give generator.path=FOLDER")
    if faults:
        raise ConfigError("\n".join(faults[:3]))
    if isinstance(generator, Model):
        check_model(generator)


def register() -> None:
    """Put the groups `generator` and `judge` into Hydra's ConfigStore; any option of `model` is a generator too."""

    store = ConfigStore.instance()
    judges.register()
    store.store(group="generator", name="base_endpoint", node=GeneratorEndpoint)
    for name in options("model"):
        store.store(group="generator", name=name, node={"defaults": [{"/model@_here_": name}, "_self_"]})
