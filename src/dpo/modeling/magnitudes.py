"""DoRA's magnitudes as its forward computes norms, so that a fresh adapter is the identity to the last bit."""

from __future__ import annotations

from typing import Any


def set_magnitudes(model: Any) -> None:
    """Set the magnitudes of fresh DoRA adapters (arXiv:2402.09353, equation 5) to the norms of their base in fp32.

    PEFT takes them in the type of the base, and divides by norms in fp32 once the adapter is held so: in 16 bits every
    layer would begin scaled by a rounding.
    """
    import torch
    from peft.utils.integrations import dequantize_module_weight

    for module in model.modules():
        for layer in getattr(module, "lora_magnitude_vector", {}).values():
            weight = dequantize_module_weight(module.get_base_layer()).float()
            layer.weight.data = layer.get_weight_norm(weight, torch.zeros((), device=weight.device), 0.0)
