"""A base model as it would be loaded, without its weights: from config.json alone, on a fake card, quantized or not."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch
from torch.utils._python_dispatch import _disable_current_modes

from dpo.config.lora import Quantization
from dpo.modeling.device import Compute
from dpo.modeling.policy import usable_attention

BLOCK, SCALES = 64, 256
"""Weights that share a scale in 4 bits, and scales that share one under double quantization (bitsandbytes')."""


def fake_base(
    config: Any, quantization: Quantization | None, compute: Compute, attention: str, trainable: bool = False
) -> Any:
    """As `modeling.policy.load_base` gives it; inside `card.fake_card`.

    Args:
        config: transformers' config of a causal language model; what is quantized on disk is not known here.
    """
    from transformers import AutoModelForCausalLM
    from transformers.initialization import no_init_weights

    config._attn_implementation = usable_attention(config, attention)
    with torch.device(compute.device), no_init_weights():
        model = AutoModelForCausalLM.from_config(
            config, dtype=torch.float32 if trainable else compute.dtype, attn_implementation=config._attn_implementation
        )
    # Left out with the initialization.
    model.tie_weights()
    model.requires_grad_(True)
    model.config.use_cache = False
    if quantization is not None:
        quantize(model, quantization, compute)
    model.eval()
    return model


def held(model: Any) -> Iterator[torch.Tensor]:
    """Every tensor that a base keeps, scales and codes of quantized weights among them."""
    yield from model.parameters()
    yield from model.buffers()
    for module in model.modules():
        state = getattr(getattr(module, "weight", None), "quant_state", None)
        for part in (state, getattr(state, "state2", None), getattr(module, "state", None)):
            for name in ("absmax", "code", "offset", "CB", "SCB"):
                tensor = getattr(part, name, None)
                if isinstance(tensor, torch.Tensor):
                    yield tensor


def quantize(model: Any, quantization: Quantization, compute: Compute) -> None:
    """Put bitsandbytes' layers in place of every linear one but the head, as transformers does, with their storage."""
    head = model.get_output_embeddings()
    model.requires_grad_(False)
    for owner in list(model.modules()):
        for name, layer in list(owner.named_children()):
            if type(layer) is torch.nn.Linear and layer is not head:
                make = _int8 if quantization.bits == 8 else _four_bits
                setattr(owner, name, make(layer, quantization, compute))
    flag = "is_loaded_in_8bit" if quantization.bits == 8 else "is_loaded_in_4bit"
    setattr(model, flag, True)
    model.is_quantized = True
    model.hf_quantizer = SimpleNamespace(is_trainable=True, is_qat_trainable=False)


def _four_bits(layer: torch.nn.Linear, quantization: Quantization, compute: Compute) -> Any:
    from bitsandbytes.functional import QuantState
    from bitsandbytes.nn.modules import Linear4bit

    assert quantization.type is not None
    double, kind, device = bool(quantization.double), quantization.type.value, layer.weight.device
    blocks = -(-layer.weight.numel() // BLOCK)

    def floats(count: int) -> torch.Tensor:
        return torch.empty(count, dtype=torch.float32, device=device)

    state2 = QuantState(floats(-(-blocks // SCALES)), code=floats(256), blocksize=SCALES, dtype=torch.float32)
    state = QuantState(
        torch.empty(blocks, dtype=torch.uint8, device=device) if double else floats(blocks),
        shape=layer.weight.shape,
        code=floats(16),
        blocksize=BLOCK,
        quant_type=kind,
        dtype=compute.dtype,
        offset=torch.empty((), device=device) if double else None,
        state2=state2 if double else None,
    )
    with _disable_current_modes():
        made = Linear4bit(1, 1, layer.bias is not None, compute.dtype, double, kind)
    made.in_features, made.out_features = layer.in_features, layer.out_features
    packed = torch.empty((-(-layer.weight.numel() // 2), 1), dtype=torch.uint8, device=device)
    # A Params4bit moves contents to a device, and there are none.
    weight: Any = torch.nn.Parameter(packed, requires_grad=False)
    weight.quant_state, weight.compress_statistics, weight.quant_type = state, double, kind
    weight.blocksize, weight.quant_storage, weight.bnb_quantized, weight.module = BLOCK, torch.uint8, True, made
    made._parameters["weight"], made._parameters["bias"] = weight, layer.bias
    made.quant_state = state
    return made


def _int8(layer: torch.nn.Linear, quantization: Quantization, compute: Compute) -> Any:
    from bitsandbytes.nn.modules import Linear8bitLt

    with _disable_current_modes():
        made = Linear8bitLt(1, 1, layer.bias is not None, has_fp16_weights=False)
    made.in_features, made.out_features = layer.in_features, layer.out_features
    held = torch.empty(layer.weight.shape, dtype=torch.int8, device=layer.weight.device)
    weight: Any = torch.nn.Parameter(held, requires_grad=False)
    weight.CB = weight.SCB = None
    weight.has_fp16_weights = False
    made._parameters["weight"], made._parameters["bias"] = weight, layer.bias
    made.state.CB = weight.data
    made.state.SCB = torch.empty(layer.out_features, dtype=torch.float32, device=layer.weight.device)
    made.state.has_fp16_weights = False
    return made
