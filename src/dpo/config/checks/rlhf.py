"""What a reward model, and training on one, may not be asked for."""

from __future__ import annotations

from dpo.config.hardware import Parallel
from dpo.config.lora import FullTraining
from dpo.config.losses import RLHF
from dpo.config.schema import Config
from dpo.errors import ConfigError


def check_rlhf(config: Config) -> None:
    """Raise a ConfigError for values that RLHF's objectives cannot work with."""
    dpo = config.dpo
    if not RLHF & set(dpo.loss):
        return
    name = dpo.loss[0]
    if isinstance(config.lora, FullTraining):
        raise ConfigError(
            f"lora=full with dpo={name}: it trains adapters on a frozen base; use lora=lora or lora=qlora"
        )
    if config.hardware.parallel is not Parallel.none:
        raise ConfigError(
            f"hardware.parallel={config.hardware.parallel.name} with dpo={name}: runs in one process; none"
        )
    if name == "reward":
        if dpo.beta != 1:
            raise ConfigError(f"dpo.beta={dpo.beta:g} with dpo=reward: the head's output is the reward; leave it at 1")
        if config.model.adapter is not None:
            raise ConfigError(
                "model.adapter with dpo=reward: a reward model begins on the base; merge the adapter into it"
            )
    elif config.model.adapter is not None:
        raise ConfigError("model.adapter with dpo=rloo: its KL is measured from the base; merge the adapter into it")
