"""Typed schema of sweeps: what is done with each job (`sweep`), and where jobs run (`hydra/launcher`)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

T = TypeVar("T")


@dataclass
class Sweep:
    """What a sweep does with a job that has trained; `evaluation` holds keys of `dpo.evaluate`."""

    evaluate: bool = MISSING
    evaluation: dict[str, Any] = field(default_factory=dict)
    judge: list[str] = MISSING


@dataclass
class Launcher:
    """Where jobs run. `slots` is how many at once."""

    _target_: str = "hydra_plugins.dpo.CollectJobs"
    slots: int | None = None


@dataclass
class Local(Launcher):
    """Processes of this machine."""


@dataclass
class Submitit(Launcher):
    """Jobs of Slurm, or with submitit_local processes that submitit starts. Times in minutes, memory in GB."""

    timeout_min: int = MISSING
    cpus_per_task: int = MISSING
    gpus_per_node: int = MISSING
    mem_gb: float | None = None
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    setup: list[str] = field(default_factory=list)
    additional_parameters: dict[str, Any] = field(default_factory=dict)


@dataclass
class Ray(Launcher):
    """Tasks of a Ray cluster; `address` null starts one on this machine."""

    address: str | None = None
    num_cpus: float = MISSING
    num_gpus: float = MISSING


@dataclass(frozen=True)
class Grid(Generic[T]):
    """A multirun, composed and checked: (config, overrides) of each job, and the launcher by name with its keys."""

    jobs: list[tuple[T, list[str]]]
    launcher: str
    settings: Launcher


def register() -> None:
    """Put the launchers' schemas where Hydra finds them; must run before any compose."""
    store = ConfigStore.instance()
    for name, node in {"base_local": Local, "base_submitit": Submitit, "base_ray": Ray}.items():
        store.store(group="hydra/launcher", name=name, node=node)
