"""The hardware group: how to compute. Nothing in it changes what is computed, up to rounding. Values live in conf/."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from omegaconf import MISSING


class Device(Enum):
    """Where to compute; auto takes a GPU when there is one."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"
    rocm = "rocm"
    mps = "mps"


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


class Parallel(Enum):
    """How the devices share a run: ddp holds the weights on each, fsdp, zero2 and zero3 spread them."""

    none = "none"
    ddp = "ddp"
    fsdp = "fsdp"
    zero2 = "zero2"
    zero3 = "zero3"


@dataclass
class Hardware:
    """How to compute. Nothing here changes what is computed, up to rounding."""

    device: Device = MISSING
    precision: Precision = MISSING
    engine: Engine = MISSING
    attention: str = MISSING
    token_budget: int | None = None
    activation_checkpointing: Checkpointing = MISSING
    memory_gb: float | None = None
    parallel: Parallel = MISSING
    processes: int | None = None
    hourly_rate: float = MISSING
