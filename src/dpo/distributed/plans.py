"""What each `hardware.parallel` hands to accelerate: TRL's config with this run's values, checked by its parser.

none    one process
ddp     multi_gpu.yaml   the weights on every device
fsdp    fsdp2.yaml       weights, gradients and optimizer states spread over devices (arXiv:2304.11277)
zero3   fsdp2.yaml       the same: stage 3 of ZeRO (arXiv:1910.02054, section 5) is what FSDP2 does, without DeepSpeed
zero2   fsdp2.yaml       stage 2: a layer's weights, once gathered, stay on every device until the backward is done
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib.resources import as_file, files
from typing import Any

from dpo.config.hardware import Device, Parallel
from dpo.config.schema import Config
from dpo.errors import ConfigError

SHIPPED = {
    Parallel.ddp: "multi_gpu.yaml",
    Parallel.fsdp: "fsdp2.yaml",
    Parallel.zero2: "fsdp2.yaml",
    Parallel.zero3: "fsdp2.yaml",
}
RESHARD = {Parallel.fsdp: True, Parallel.zero2: False, Parallel.zero3: True}
"""Whether a layer's weights are given up between its forward and its backward."""


@dataclass(frozen=True)
class Plan:
    """`argv` for accelerate launch, what its own parser and checks made of it, and the environment of the ranks."""

    argv: list[str]
    arguments: Any
    environment: dict[str, str]
    line: str


def compose(config: Config, count: int) -> Plan:
    """The plan of a run of `count` processes on this machine; raises ConfigError for what it cannot be."""
    import torch
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_multi_gpu_env

    from dpo.modeling.device import choose_compute

    hardware = config.hardware
    on_cpu = hardware.device is Device.cpu or not torch.cuda.is_available()
    precision = "bf16" if choose_compute(hardware.device, hardware.precision).bf16 else "no"
    with as_file(files("trl.accelerate_configs") / SHIPPED[hardware.parallel]) as shipped:
        argv = ["--config_file", str(shipped), "--num_processes", str(count), "--num_machines", "1"]
        if hardware.parallel in RESHARD:
            argv += ["--fsdp_reshard_after_forward", str(RESHARD[hardware.parallel]).lower()]
            # Every rank loads the weights: the reference pass needs them whole.
            argv += ["--fsdp_cpu_ram_efficient_loading", "false"]
        argv += ["--mixed_precision", precision, "--main_process_port", "0", "-m", "dpo.train"]
        try:
            arguments, _, _ = _validate_launch_command(launch_command_parser().parse_args(argv))
            environment = prepare_multi_gpu_env(arguments)
        except ValueError as error:
            raise ConfigError(f"hardware.parallel={hardware.parallel.name}: accelerate refuses it: {error}") from None
    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(arguments.main_process_port)}
    if on_cpu and "OMP_NUM_THREADS" not in environment:
        environment["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // count))
    kind = "CPU processes" if on_cpu else "GPUs"
    return Plan(argv, arguments, environment, f"{hardware.parallel.name} over {count} {kind}")


def fsdp_plugin(parallel: Parallel) -> Any:
    """accelerate's description of what to spread, as `compose` gives it to accelerate; `sharded` follows it."""
    from accelerate import FullyShardedDataParallelPlugin

    return FullyShardedDataParallelPlugin(
        fsdp_version=2,
        reshard_after_forward=RESHARD[parallel],
        auto_wrap_policy="transformer_based_wrap",
        cpu_offload=False,
        cpu_ram_efficient_loading=False,
        state_dict_type="full_state_dict",
    )
