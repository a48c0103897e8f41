"""Typed schema of `python -m dpo.synthesize`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

from dpo.config import judges
from dpo.config.checks.combinations import check_model
from dpo.config.checks.given import check_folder_to_make
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
            ("n", config.n, 2 <= config.n <= 1000, "2 to 1000: a pair is the best answer against the worst"),
            ("seed", config.seed, 0 <= config.seed < 2**32, "0 to 4294967295"),
            ("dev_pairs", config.dev_pairs, config.dev_pairs >= 0, "at least 0"),
            ("test_pairs", config.test_pairs, config.test_pairs >= 0, "at least 0"),
            ("sampling.temperature", sampling.temperature, 0 < sampling.temperature <= 10, "above 0, at most 10"),
            ("sampling.top_k", sampling.top_k, 2 <= sampling.top_k <= 10**6, "at least 2, at most 1000000"),
            ("sampling.max_new_tokens", sampling.max_new_tokens, 1 <= sampling.max_new_tokens <= 10**6, "1 to 1000000"),
            ("sampling.batch_size", sampling.batch_size, 1 <= sampling.batch_size <= 10**5, "1 to 100000"),
        )
        if not holds
    ]
    if isinstance(generator, GeneratorEndpoint):
        if not (1 <= generator.concurrency <= 1000 and 0 < generator.timeout <= 3600 and 0 <= generator.retries <= 100):
            faults.append("generator: concurrency must be 1 to 1000, timeout above 0 to 3600, retries 0 to 100")
        if not generator.base_url.startswith(("http://", "https://")):
            faults.append(f"generator.base_url={generator.base_url}: must be a URL with http:// or https://")
    elif generator.adapter is not None:
        faults.append(f"generator.adapter={generator.adapter}: not read here; merge it and give generator.path=FOLDER")
    if faults:
        raise ConfigError("\n".join(faults[:3]))
    check_folder_to_make("out", config.out)
    if isinstance(generator, Model):
        check_model(generator)


def register() -> None:
    """Put the groups `generator` and `judge` into Hydra's ConfigStore; any option of `model` is a generator too."""

    store = ConfigStore.instance()
    judges.register()
    store.store(group="generator", name="base_endpoint", node=GeneratorEndpoint)
    for name in options("model"):
        store.store(group="generator", name=name, node={"defaults": [{"/model@_here_": name}, "_self_"]})
