"""The typed run config: one module per group beside this one, and in it one dataclass per option with keys of its own.

Dataclasses hold types; the values, and what they mean, stand in conf/. This module never imports torch.
"""

from __future__ import annotations

from dataclasses import dataclass

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

from dpo.config import datasets, sweeps
from dpo.config.hardware import Hardware
from dpo.config.lora import FullTraining, Lora, Trainable
from dpo.config.losses import SINGLE, Dpo, Mix
from dpo.config.model import Model
from dpo.config.tracking import Tensorboard, Tracking, Trackio, Wandb


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
    sweep: sweeps.Sweep = MISSING


NODES: dict[str, dict[str, type]] = {
    "model": {"base_model": Model},
    "dataset": {f"base_{name}": schema for name, schema in datasets.SCHEMAS.items()},
    "lora": {"base_lora": Lora, "base_full": FullTraining},
    "dpo": {**{f"base_{name}": loss for name, loss in SINGLE.items()}, "base_mix": Mix},
    "hardware": {"base_hardware": Hardware},
    "tracking": {
        "base_none": Tracking,
        "base_wandb": Wandb,
        "base_trackio": Trackio,
        "base_tensorboard": Tensorboard,
    },
}


def register() -> None:
    """Put every schema into Hydra's ConfigStore; must run before any compose."""
    store = ConfigStore.instance()
    for group, nodes in NODES.items():
        for name, node in nodes.items():
            store.store(group=group, name=name, node=node)
    sweeps.register()
