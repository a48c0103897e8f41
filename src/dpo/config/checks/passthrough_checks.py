"""Types and ranges of the fields that `dpo.trainer` hands to TRL's DPOConfig, which checks few of them, and late."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from dpo.errors import ConfigError

Check = tuple[Callable[[Any], bool], str]


def _is(*kinds: type) -> Callable[[Any], bool]:
    return lambda v: isinstance(v, kinds) and (bool in kinds or not isinstance(v, bool))


def _whole(low: int, high: int) -> Check:
    return lambda v: _is(int)(v) and low <= v <= high, f"a whole number from {low} to {high}"


def _number(low: float, high: float) -> Check:
    return lambda v: _is(int, float)(v) and math.isfinite(v) and low <= v < high, f"a number from {low} to below {high}"


def _one_of(*names: str) -> Check:
    return lambda v: v in names, f"one of {', '.join(names)}"


SWITCH: Check = (_is(bool), "true or false")
TEXT: Check = (_is(str), "text")
MAPPING: Check = (_is(dict), "a mapping")
LEVEL = _one_of("debug", "info", "warning", "error", "critical", "passive")

CHECKS: dict[str, Check] = {
    "lr_scheduler_kwargs": MAPPING,
    "adam_beta1": _number(0, 1),
    "adam_beta2": _number(0, 1),
    "adam_epsilon": _number(1e-30, 1),
    "tf32": SWITCH,
    "activation_checkpointing_kwargs": MAPPING,
    "torch_compile": SWITCH,
    "torch_compile_backend": TEXT,
    "torch_compile_mode": TEXT,
    "neftune_noise_alpha": _number(0, 1e6),
    "torch_empty_cache_steps": _whole(1, 10**9),
    "log_level": LEVEL,
    "log_level_replica": LEVEL,
    "log_on_each_node": SWITCH,
    "dataloader_num_workers": _whole(0, 64),
    "dataloader_pin_memory": SWITCH,
    "dataloader_persistent_workers": SWITCH,
    "dataloader_prefetch_factor": _whole(1, 1000),
    "dataloader_multiprocessing_context": _one_of("fork", "spawn", "forkserver"),
    "ddp_bucket_cap_mb": _whole(1, 100_000),
    "ddp_broadcast_buffers": SWITCH,
    "ddp_static_graph": SWITCH,
    "ddp_timeout": _whole(1, 10**7),
    "full_determinism": SWITCH,
    "activation_offloading": SWITCH,
    "router_aux_loss_coef": _number(0, 1e6),
}


def check_values(trainer: Mapping[str, Any]) -> None:
    """Raise a ConfigError for a value of a wrong type or range; null is each field's own default."""
    for name, value in trainer.items():
        holds, allowed = CHECKS[name]
        if value is not None and not holds(value):
            raise ConfigError(f"dpo.trainer.{name}={value}: must be {allowed}, or null")
    for name in ("dataloader_prefetch_factor", "dataloader_persistent_workers", "dataloader_multiprocessing_context"):
        if trainer.get(name) and not trainer.get("dataloader_num_workers"):
            raise ConfigError(f"dpo.trainer.{name}: needs dpo.trainer.dataloader_num_workers of at least 1")
