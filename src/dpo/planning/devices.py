"""GPUs by the figures of their makers, and what of them a step can use."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Device:
    """`memory_gb` as vendors count; `tflops` of dense products in 16 bits and of fp32; `bandwidth` in GB/s."""

    name: str
    memory_gb: float
    capability: tuple[int, int]
    tflops_16: float
    tflops_32: float
    bandwidth: float
    source: str


NVIDIA = "https://www.nvidia.com/en-us/data-center"
GEFORCE = "https://images.nvidia.com/aem-dam/Solutions/geforce"
GA102 = f"{GEFORCE}/ampere/pdf/NVIDIA-ampere-GA102-GPU-Architecture-Whitepaper-V1.pdf"
DEVICES = (
    Device("T4", 16, (7, 5), 65, 8.1, 320, f"{NVIDIA}/tesla-t4/"),
    Device("V100", 16, (7, 0), 125, 15.7, 900, f"{NVIDIA}/v100/"),
    Device("L4", 24, (8, 9), 121, 30.3, 300, f"{NVIDIA}/l4/"),
    Device("A10G", 24, (8, 6), 70, 31.2, 600, f"{NVIDIA}/products/a10-gpu/"),
    Device("RTX 3090", 24, (8, 6), 71, 35.6, 936, GA102),
    Device("RTX 4090", 24, (8, 9), 165, 82.6, 1008, f"{GEFORCE}/ada/nvidia-ada-gpu-architecture.pdf"),
    Device("A100 40GB", 40, (8, 0), 312, 19.5, 1555, f"{NVIDIA}/a100/"),
    Device("RTX A6000", 48, (8, 6), 155, 38.7, 768, "https://www.nvidia.com/en-us/design-visualization/rtx-a6000/"),
    Device("L40S", 48, (8, 9), 362, 91.6, 864, f"{NVIDIA}/l40s/"),
    Device("A100 80GB", 80, (8, 0), 312, 19.5, 2039, f"{NVIDIA}/a100/"),
    Device("H100 SXM", 80, (9, 0), 989, 67, 3350, f"{NVIDIA}/h100/"),
    Device("H200", 141, (9, 0), 989, 67, 4800, f"{NVIDIA}/h200/"),
    Device("B200", 180, (10, 0), 2250, 75, 8000, f"{NVIDIA}/dgx-b200/"),
)  # fmt: skip
"""Figures as published, dense; smallest first."""


def of_size(memory_gb: float) -> list[Device]:
    """Those with that much memory; none for a size that none has."""
    return [device for device in DEVICES if device.memory_gb == memory_gb]


def sizes() -> list[float]:
    """Memory of the devices, each once, smallest first."""
    return sorted({device.memory_gb for device in DEVICES})
