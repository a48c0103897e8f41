"""Which device and which compute type."""

from __future__ import annotations

import ctypes
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpo.config.hardware import Device, Precision
from dpo.errors import ConfigError

INSTEAD = "use hardware=cpu or hardware=auto"


@dataclass(frozen=True)
class Compute:
    """`device` is cpu, cuda (AMD's GPUs too: ROCm answers to that name in torch) or mps; `dtype` is torch.bfloat16 or
    torch.float32."""

    device: str
    dtype: Any

    @property
    def bf16(self) -> bool:
        """Whether forward passes run in bfloat16."""
        return str(self.dtype) == "torch.bfloat16"


def pin_one_gpu() -> None:
    """Make one GPU visible, the first; must run before torch is imported: TRL refuses several without a launcher."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0")
    os.environ["CUDA_VISIBLE_DEVICES"] = visible.split(",")[0]


def check_driver(device: Device) -> None:
    """Raise ConfigError where the machine shows that it has no such device: torch, for which that takes seconds, is not
    imported."""
    graphics = Path("/dev/dxg").exists()  # WSL's, of any vendor
    if device is Device.mps and sys.platform != "darwin":
        raise ConfigError(f"hardware.device=mps: {sys.platform} has no Metal; {INSTEAD}")
    if sys.platform != "linux" or graphics or Path("/dev/kfd").exists():
        return
    if device is Device.rocm:
        raise ConfigError("hardware.device=rocm: no AMD GPU is here (/dev/kfd); use hardware=gpu or hardware=cpu")
    if device is Device.cuda:
        try:
            ctypes.CDLL("libcuda.so.1")
        except OSError:
            raise ConfigError(f"hardware.device=cuda: no NVIDIA driver (libcuda.so.1) is here; {INSTEAD}") from None


def choose_compute(device: Device, precision: Precision) -> Compute:
    """Resolve the autos. bf16 is chosen only where the hardware multiplies it (elsewhere it is emulated,
    several times slower than fp32); on Metal fp32, where the chips before M2 have no bf16. A device that is not here
    is a ConfigError."""
    import torch

    has_gpu = torch.cuda.is_available()
    if device is Device.cuda and not has_gpu:
        raise ConfigError(f"hardware.device=cuda: torch sees no GPU here; {INSTEAD}")
    if device is Device.rocm and not (has_gpu and torch.version.hip):
        what = "torch is not built for ROCm" if not torch.version.hip else "torch sees no AMD GPU"
        raise ConfigError(f"hardware.device=rocm: {what} here; use hardware=gpu for NVIDIA, or hardware=cpu")
    if device is Device.mps and not torch.backends.mps.is_available():
        raise ConfigError(f"hardware.device=mps: torch sees no Metal GPU here; {INSTEAD}")
    kind = "mps" if device is Device.mps else "cuda" if has_gpu and device is not Device.cpu else "cpu"
    if precision is Precision.auto:
        if kind == "cuda":
            # T4 and V100 emulate it, slower than their fp32.
            fast = torch.cuda.is_bf16_supported(including_emulation=False)
        else:
            fast = kind == "cpu" and _cpu_has_bf16()
        return Compute(kind, torch.bfloat16 if fast else torch.float32)
    return Compute(kind, torch.bfloat16 if precision is Precision.bf16 else torch.float32)


def _cpu_has_bf16() -> bool:
    import torch

    capabilities = torch.cpu.get_capabilities()
    return any(bool(capabilities.get(name)) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def describe(compute: Compute) -> str:
    """One line for run.json and the terminal."""
    import platform

    import torch

    if compute.device == "cuda":
        return torch.cuda.get_device_name()
    if compute.device == "mps":
        return f"{platform.machine()} Metal GPU"
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"


def kernels(device: str) -> str:
    """What decides, besides torch's version, which kernels compute on a device type: the card, or what a CPU can."""
    import torch

    if device == "cuda":
        return f"cuda {torch.cuda.get_device_name()}"
    if device != "cpu":
        return device
    found = torch.cpu.get_capabilities()
    able = sorted(name for name, value in found.items() if value is True)
    return " ".join(["cpu", *(str(found.get(name)) for name in ("architecture", "cpu_name")), *able])


def card_uuid() -> str:
    """The current CUDA card by the name its driver knows it by, whatever CUDA_VISIBLE_DEVICES renumbers."""
    import torch

    return f"GPU-{torch.cuda.get_device_properties(torch.cuda.current_device()).uuid}"
