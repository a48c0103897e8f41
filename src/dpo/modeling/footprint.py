"""How much memory the weights and their training state take, against full fine-tuning of the same model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

MB = 2**20
FULL_BYTES = 16
"""Per parameter of full fine-tuning: fp32 weight, its gradient and AdamW's two moments."""
OPTIMIZER_BYTES = {"adamw_torch_fused": 8, "paged_adamw_8bit": 2}


@dataclass(frozen=True)
class Footprint:
    """Megabytes. `state_mb` is weights, gradients and optimizer of this run, `full_state_mb` of full fine-tuning.

    `trainable` and `total` count parameters; `optimizer_mb` is a forecast until `measured` has seen the optimizer.
    """

    base_mb: float
    base_16bit_mb: float
    trainable: int
    total: int
    optimizer_mb: float
    state_mb: float
    full_state_mb: float
    measured: bool = False

    def __str__(self) -> str:
        share = 100 * self.trainable / self.total
        return (
            f"base {self.base_mb:.0f} MB of {self.base_16bit_mb:.0f} MB in 16 bits, {share:.2g}% trainable; with "
            f"gradients and optimizer {self.state_mb:.0f} MB, full fine-tuning {self.full_state_mb:.0f} MB"
        )


def footprint(model: Any, optimizer: Any) -> Footprint:
    """Count parameters and bytes; a packed 4-bit tensor counts each of its two values.

    Args:
        optimizer: its name in the Trainer's words for a forecast, or a torch optimizer that has stepped.
    """
    held = sixteen = trainable = total = weights = gradients = 0
    for name, parameter in model.named_parameters():
        state = getattr(parameter, "quant_state", None)
        numel = state.shape.numel() if state is not None else parameter.numel()
        size = _bytes(parameter)
        total += numel
        weights += size
        if parameter.requires_grad:
            trainable += numel
            gradients += size
        if "lora_" not in name:
            held += size
            sixteen += 2 * numel
    measured = not isinstance(optimizer, str)
    moments = _state_bytes(optimizer) if measured else OPTIMIZER_BYTES[optimizer] * trainable
    # A model of its own without adapters has the same parameters, less these.
    base = total - trainable if trainable < total else total
    return Footprint(
        base_mb=held / MB,
        base_16bit_mb=sixteen / MB,
        trainable=trainable,
        total=total,
        optimizer_mb=moments / MB,
        state_mb=(weights + gradients + moments) / MB,
        full_state_mb=FULL_BYTES * base / MB,
        measured=measured,
    )


def _state_bytes(optimizer: Any) -> int:
    return sum(
        _bytes(value)
        for state in optimizer.state.values()
        for value in state.values()
        if hasattr(value, "element_size")
    )


def _bytes(tensor: Any) -> int:
    """Bytes on this device: of its own part where a tensor is spread over several."""
    own = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return int(own.numel() * own.element_size())
