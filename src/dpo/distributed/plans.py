"""What accelerate is told to spread, for the ranks of a run whose weights do not lie whole on each device.

fsdp and zero3 are one thing with two names: stage 3 of ZeRO (arXiv:1910.02054, section 5) is what FSDP2
(arXiv:2304.11277) does, without DeepSpeed. zero2 is stage 2: a layer's weights, once gathered, stay on every device
until the backward is done.
"""

from __future__ import annotations

from typing import Any

from dpo.config.hardware import Parallel

RESHARD = {Parallel.fsdp: True, Parallel.zero2: False, Parallel.zero3: True}
"""Whether a layer's weights are given up between its forward and its backward."""


def fsdp_plugin(parallel: Parallel) -> Any:
    """accelerate's description of what to spread, which `sharded` follows."""
    from accelerate import FullyShardedDataParallelPlugin

    return FullyShardedDataParallelPlugin(
        fsdp_version=2,
        reshard_after_forward=RESHARD[parallel],
        auto_wrap_policy="transformer_based_wrap",
        cpu_offload=False,
        cpu_ram_efficient_loading=False,
        state_dict_type="full_state_dict",
    )
