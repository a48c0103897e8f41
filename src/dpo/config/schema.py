"""The typed run config: one dataclass per group, and per option where options have keys of their own.

Dataclasses hold types; the values, and what they mean, stand in conf/. This module never imports torch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

from dpo.config import datasets


@dataclass
class Model:
    """Which weights: a hub id, a folder with safetensors, or `embedded:NAME` for weights shipped in a package."""

    path: str = MISSING
    revision: str = MISSING
    chat_template: str | None = None


class QuantType(Enum):
    """4-bit data types of bitsandbytes; int8 has none."""

    nf4 = "nf4"
    fp4 = "fp4"


@dataclass
class Quantization:
    """How frozen base weights are stored (QLoRA, arXiv:2305.14314, section 3)."""

    bits: int = MISSING
    type: QuantType = MISSING
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
    rslora: bool = MISSING
    dora: bool = MISSING


@dataclass
class FullTraining(Trainable):
    """Every weight is trainable."""


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


class Device(Enum):
    """Where to compute; auto takes a GPU when there is one."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class Precision(Enum):
    """Compute type; auto is bf16 where the device has it in hardware, else fp32."""

    auto = "auto"
    bf16 = "bf16"
    fp32 = "fp32"


class Engine(Enum):
    """packed: prompts once, no padding; plain: TRL's own forward on the same token ids."""

    packed = "packed"
    plain = "plain"


class Checkpointing(Enum):
    """Activation checkpointing; auto turns it on only when one pair would not fit the memory otherwise."""

    auto = "auto"
    on = "on"
    off = "off"


@dataclass
class Hardware:
    """How to compute. Nothing here changes what is computed, up to rounding."""

    device: Device = MISSING
    precision: Precision = MISSING
    engine: Engine = MISSING
    attention: str = MISSING
    token_budget: int | None = None
    activation_checkpointing: Checkpointing = MISSING
    hourly_rate: float = MISSING


class WandbMode(Enum):
    """auto: online when a key is present and the server answers within seconds, else offline."""

    auto = "auto"
    online = "online"
    offline = "offline"


@dataclass
class Tracking:
    """Where metrics go besides the run directory."""

    backend: str = MISSING


@dataclass
class Wandb(Tracking):
    """Weights & Biases; never needs an account."""

    project: str = MISSING
    entity: str | None = None
    group: str | None = None
    mode: WandbMode = MISSING


@dataclass
class Config:
    """One run, whole: what the verbs below the Hydra boundary receive from `parse`."""

    seed: int = MISSING
    name: str = MISSING
    resume: str = MISSING
    resume_anyway: bool = MISSING
    model: Model = MISSING
    dataset: datasets.Dataset = MISSING
    lora: Trainable = MISSING
    dpo: Dpo = MISSING
    hardware: Hardware = MISSING
    tracking: Tracking = MISSING


NODES: dict[str, dict[str, type]] = {
    "model": {"base_model": Model},
    "dataset": {f"base_{name}": schema for name, schema in datasets.SCHEMAS.items()},
    "lora": {"base_lora": Lora, "base_full": FullTraining},
    "dpo": {"base_sigmoid": Sigmoid, "base_ipo": Ipo},
    "hardware": {"base_hardware": Hardware},
    "tracking": {"base_none": Tracking, "base_wandb": Wandb},
}


def register() -> None:
    """Put every schema into Hydra's ConfigStore; must run before any compose."""
    store = ConfigStore.instance()
    for group, nodes in NODES.items():
        for name, node in nodes.items():
            store.store(group=group, name=name, node=node)
