"""What each `hardware.parallel` hands to accelerate: TRL's config with this run's values, checked by its parser.

none    one process
ddp     multi_gpu.yaml   the weights on every device
fsdp    fsdp2.yaml       weights, gradients and optimizer states spread over devices (arXiv:2304.11277)
zero2   zero2.yaml       DeepSpeed: gradients and optimizer states spread (arXiv:1910.02054, section 5)
zero3   zero3.yaml       DeepSpeed: weights too
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import as_file, files
from typing import Any

from dpo.config.hardware import Device, Parallel
from dpo.config.schema import Config
from dpo.errors import ConfigError

SHIPPED = {
    Parallel.ddp: "multi_gpu.yaml",
    Parallel.fsdp: "fsdp2.yaml",
    Parallel.zero2: "zero2.yaml",
    Parallel.zero3: "zero3.yaml",
}


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


def check_runs(parallel: Parallel) -> None:
    """Raise ConfigError for a plan that can be composed and not trained with: never run it as another one."""
    if parallel in (Parallel.zero2, Parallel.zero3) and importlib.util.find_spec("deepspeed") is None:
        raise ConfigError(
            f"hardware.parallel={parallel.name}: needs the package deepspeed; or use hardware.parallel=ddp"
        )
    if parallel not in (Parallel.none, Parallel.ddp):
        raise ConfigError(
            f"hardware.parallel={parallel.name}: the trainer does not spread weights over devices yet; "
            "use hardware.parallel=ddp"
        )


@contextlib.contextmanager
def in_environment(values: dict[str, str]) -> Iterator[None]:
    """The process's environment as `values` inside, as it was afterwards."""
    kept = dict(os.environ)
    os.environ.clear()
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(kept)
