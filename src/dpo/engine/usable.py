"""How much memory a run may plan with: what is free, or what a named card would leave beside the model."""

from __future__ import annotations

from typing import Any

from dpo.modeling.footprint import MB, footprint

GIGABYTE = 10**9
"""`hardware.memory_gb` counts as vendors do; of a "16 GB" card a driver shows about 14.9 GiB."""


def usable(free: int, memory_gb: float | None, held: int, processes: int) -> int:
    """Bytes that activations and gradients of one process may take.

    Args:
        free: bytes that can be allocated now.
        memory_gb: memory of the device to plan for, or None for the one at hand.
        held: bytes of the model, which lie in that memory too.
        processes: how many of this run share the memory that `free` was read from.
    """
    own = free // processes
    return own if memory_gb is None else max(0, min(own, int(memory_gb * GIGABYTE) - held))


def held_bytes(model: Any) -> int:
    """Bytes of all parameters as they are stored."""
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())


def training_bytes(model: Any, optimizer: str) -> int:
    """Bytes that gradients of all trainable parameters and the moments of `optimizer` (its name in the Trainer's words)
    take once a step has been taken: they lie beside the activations of every later one."""
    size = footprint(model, optimizer)
    gradients = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    return int(gradients + size.optimizer_mb * MB)


def cap_device(memory_gb: float | None) -> None:
    """Let this process allocate at most `memory_gb` of its CUDA device: a larger card then behaves like that one."""
    import torch

    if memory_gb is not None:
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, memory_gb * GIGABYTE / total))
