"""Train and eval flags: how to score a model without spoiling its 4-bit layers for the next backward."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch


def is_4bit(module: torch.nn.Module) -> bool:
    """True for bitsandbytes' Linear4bit, without importing bitsandbytes."""
    return any(c.__name__ == "Linear4bit" and c.__module__.startswith("bitsandbytes") for c in type(module).__mro__)


def is_quantized(module: torch.nn.Module) -> bool:
    """True for bitsandbytes' layers, of 4 and of 8 bits."""
    return any(
        c.__name__ in ("Linear4bit", "Linear8bitLt") and c.__module__.startswith("bitsandbytes")
        for c in type(module).__mro__
    )


def keep_4bit_layout(model: torch.nn.Module) -> None:
    """Stop bitsandbytes from repacking weights on CPUs with AVX512-BF16.

    It does so in the first forward without gradients in eval mode, and a later backward through the repacked weights
    gives no gradient, with only a warning.
    """
    for module in model.modules():
        if is_4bit(module) and hasattr(module, "support_avx512bf16_for_cpu"):
            setattr(module, "support_avx512bf16_for_cpu", False)  # noqa: B010 - not an attribute of nn.Module


def keep_quantized_in_train_mode(model: torch.nn.Module) -> None:
    """Put 4-bit layers on a CPU back into train mode, which changes nothing in them but that repacking."""
    for module in model.modules():
        weight = getattr(module, "weight", None)
        if is_4bit(module) and weight is not None and weight.device.type == "cpu":
            module.training = True


@contextmanager
def scoring_mode(model: torch.nn.Module, training: bool = False) -> Iterator[None]:
    """No gradients, eval mode (or `training`'s), every module's flag as it was afterwards; 4-bit layers on CPU stay in
    train mode."""
    import torch

    flags = [(module, module.training) for module in model.modules()]
    model.train(training)
    keep_quantized_in_train_mode(model)
    try:
        with torch.no_grad():
            yield
    finally:
        for module, flag in flags:
            module.training = flag
