"""What a base draws at random while it trains is off: the policy is compared with a reference that draws nothing.

TRL's `disable_dropout` sets nn.Dropout alone. Most families ask for dropout in other ways: by a number that a module
or its config holds (attention, activations, whole layers, noise before a router).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

RANDOM = re.compile(r"dropout|pdrop|layerdrop|drop_rate|drop_prob|jitter")


def turn_off_randomness(model: Any) -> list[str]:
    """Set to 0 every dropout and noise of a base, which must hold no adapters yet; returns their names, sorted."""
    import torch

    found = set()
    for holder in [*model.modules(), *_configs(model.config)]:
        if isinstance(holder, torch.nn.modules.dropout._DropoutNd) and holder.p > 0:
            holder.p = 0.0
            found.add("dropout")
        for name, value in list(vars(holder).items()):
            if type(value) is float and value > 0 and RANDOM.search(name):
                setattr(holder, name, 0.0)
                found.add(name)
    return sorted(found)


def draws_at_random(model: Any) -> bool:
    """Whether two forwards in train mode may differ: dropout of adapters, once the base's own is off."""
    import torch

    return any(isinstance(part, torch.nn.modules.dropout._DropoutNd) and part.p > 0 for part in model.modules())


def _configs(config: Any) -> Iterator[Any]:
    from transformers import PreTrainedConfig

    yield config
    for part in vars(config).values():
        if isinstance(part, PreTrainedConfig):
            yield from _configs(part)
