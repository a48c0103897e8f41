"""The lora group: what is trainable and how the frozen rest is stored. Values live in conf/."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

from omegaconf import MISSING


class QuantType(Enum):
    """4-bit data types of bitsandbytes."""

    nf4 = "nf4"
    fp4 = "fp4"


@dataclass
class Quantization:
    """How frozen base weights are stored (QLoRA, arXiv:2305.14314, section 3)."""

    bits: int = MISSING
    type: QuantType | None = None
    double: bool = MISSING


@dataclass
class Trainable:
    """What is trainable and how the frozen rest is stored."""

    quantization: Quantization | None = None


@dataclass
class Lora(Trainable):
    """Low-rank adapters, W + alpha/rank B A (LoRA, arXiv:2106.09685, section 4.1)."""

    rank: int = MISSING
    alpha: int = MISSING
    dropout: float = MISSING
    target_modules: Any = MISSING
    exclude_modules: Any = None
    rslora: bool = MISSING
    dora: bool = MISSING


@dataclass
class FullTraining(Trainable):
    """Every weight is trainable."""
