"""Typed schema of the verbs that hand a model on: export and chat."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

from omegaconf import MISSING

from dpo.config.evaluation import Split
from dpo.errors import ConfigError


class Format(Enum):
    """How the merged weights are stored; int8 is bitsandbytes', gguf llama.cpp's."""

    bf16 = "bf16"
    fp16 = "fp16"
    fp32 = "fp32"
    int8 = "int8"
    gguf = "gguf"


class GgufType(Enum):
    """Tensor type of a GGUF file."""

    f16 = "f16"
    bf16 = "bf16"
    q8_0 = "q8_0"


@dataclass
class Export:
    """`python -m dpo.export run=DIR`."""

    run: str = MISSING
    format: Format = MISSING
    gguf_type: GgufType = MISSING
    out: str | None = MISSING
    again: bool = MISSING
    split: Split = MISSING
    pairs: int | None = MISSING
    bound: float = MISSING
    force: bool = MISSING
    resamples: int = MISSING
    confidence: float = MISSING
    seed: int = MISSING
    push: str | None = MISSING
    private: bool = MISSING
    dry_run: bool = MISSING


@dataclass
class Chat:
    """`python -m dpo.chat run=DIR`."""

    run: str = MISSING
    system: str | None = MISSING
    temperature: float = MISSING
    top_k: int = MISSING
    max_new_tokens: int = MISSING
    seed: int = MISSING


# The hub's own rule of names.
HUB_ID = re.compile(r"(?!.*(--|\.\.|\.git$))(\w[\w.-]*/)?\w[\w.-]*(?<![.-])", re.ASCII)

RANGES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "bound": (lambda v: 0 < v < float("inf"), "above 0"),
    "push": (lambda v: len(v) <= 96 and HUB_ID.fullmatch(v) is not None, "a hub id such as org/name"),
}


def check_export(config: Export) -> None:
    """Raise a ConfigError naming keys that cannot work, or that would have no effect."""
    from dpo.config.evaluation import check_ranges

    check_ranges(config)
    for key, (holds, allowed) in RANGES.items():
        value = getattr(config, key)
        if value is not None and not holds(value):
            raise ConfigError(f"{key}={value}: must be {allowed}")
    if config.push is None and (config.dry_run or config.private):
        name = "dry_run" if config.dry_run else "private"
        raise ConfigError(f"{name}=true: has no effect without push=HUB_ID")
