"""Typed schema of `python -m dpo.synthesize`."""

from __future__ import annotations

from dataclasses import dataclass

from omegaconf import MISSING

from dpo.config.hardware import Hardware
from dpo.config.model import Model


@dataclass
class SamplingConfig:
    """How answers are drawn."""

    temperature: float = MISSING
    top_k: int = MISSING
    max_new_tokens: int = MISSING
    batch_size: int = MISSING


@dataclass
class Synthesize:
    """Prompts in, preference pairs out."""

    prompts: str | None = MISSING
    out: str = MISSING
    n: int = MISSING
    seed: int = MISSING
    dev_pairs: int = MISSING
    test_pairs: int = MISSING
    sampling: SamplingConfig = MISSING
    model: Model = MISSING
    hardware: Hardware = MISSING
