"""The dpo group: objective and optimization, one dataclass per loss with just what that loss reads."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from omegaconf import MISSING


class Optimizer(Enum):
    """Names of optimizers, in the Trainer's words."""

    adamw = "adamw_torch"
    paged_adamw_8bit = "paged_adamw_8bit"


class Scheduler(Enum):
    """Learning-rate schedules, in the Trainer's words."""

    constant = "constant"
    constant_with_warmup = "constant_with_warmup"
    linear = "linear"
    cosine = "cosine"


@dataclass
class Dpo:
    """Objective and optimization. `batch_size` is pairs per optimizer step, over all devices."""

    loss: list[str] = MISSING
    beta: float = MISSING
    learning_rate: float = MISSING
    optimizer: Optimizer = MISSING
    weight_decay: float = MISSING
    max_grad_norm: float = MISSING
    scheduler: Scheduler = MISSING
    warmup_ratio: float = MISSING
    epochs: float = MISSING
    max_steps: int | None = None
    batch_size: int = MISSING
    log_every: int = MISSING
    eval_every: int = MISSING
    eval_limit: int | None = None
    save_every: int = MISSING
    keep_checkpoints: int = MISSING
    trainer: dict[str, Any] = field(default_factory=dict)


@dataclass
class Sigmoid(Dpo):
    """-log sigmoid(beta (chosen - rejected log-ratio)) (DPO, arXiv:2305.18290, equation 7)."""


@dataclass
class Ipo(Dpo):
    """(log-ratio difference - 1/(2 beta))^2 (IPO, arXiv:2310.12036, equation 17)."""
