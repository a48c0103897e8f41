"""In how many bits weights lie on disk, against what `lora.quantization` says. Reads config.json alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dpo.config.lora import FullTraining, Quantization, QuantType, Trainable
from dpo.errors import ConfigError
from dpo.modeling.safetensors import read_header
from dpo.modeling.weights import Weights

OURS = ("bitsandbytes", "bitsandbytes_4bit", "bitsandbytes_8bit")


def stored_quantization(folder: Path, source: str) -> Quantization | None:
    """How bitsandbytes stored the weights of `folder`, None for plain ones; ConfigError for any other storage."""
    raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    nested = raw.get("text_config")
    found = next((part[key] for part in (raw, nested) if isinstance(part, dict) for key in KEYS if part.get(key)), None)
    if found is None:
        _check_numbers(folder, source)
        return None
    method = found.get("quant_method") if isinstance(found, dict) else None
    if method is None and isinstance(found, dict) and (found.get("load_in_4bit") or found.get("load_in_8bit")):
        method = OURS[0]
    if method not in OURS:
        kind = str(method or "a format of its own").replace("_", "-")
        raise ConfigError(
            f"model.path={source}: its weights are stored in {kind.upper() if method else kind}, which cannot be "
            f"trained on or merged into here\n{ORIGINAL}"
        )
    if found.get("load_in_8bit"):
        return Quantization(bits=8, type=None, double=False)
    kind = str(found.get("bnb_4bit_quant_type", "fp4"))
    return Quantization(bits=4, type=QuantType(kind), double=bool(found.get("bnb_4bit_use_double_quant", False)))


def _check_numbers(folder: Path, source: str) -> None:
    """Raise ConfigError where matrices lie in few bits and nothing says by which scales they become weights."""
    for path in sorted(folder.glob("*.safetensors")):
        for name, tensor in read_header(path).items():
            if tensor.dtype not in PLAIN and len(tensor.shape) > 1:
                raise ConfigError(
                    f"model.path={source}: {name} lies in {tensor.dtype}, and its config.json names no quantization, "
                    f"so its scales are unknown\n{ORIGINAL}"
                )


ORIGINAL = "take the 16-bit original of this model; lora=qlora quantizes it while loading"
PLAIN = ("F16", "BF16", "F32", "F64", "I64", "I32", "BOOL")
"""Weights, and tables of places and masks (DeepSeek-V4 keeps one): no format packs weights in wide integers alone."""
KEYS = ("quantization_config", "compression_config", "quantization")
"""Where transformers, older compressed-tensors and MLX say that weights are not plain numbers."""


def check_stored(weights: Weights, lora: Trainable) -> None:
    """Raise ConfigError where weights that lie quantized on disk are asked for in another form."""
    stored = stored_quantization(weights.folder, weights.source)
    if stored is None or stored == lora.quantization:
        return
    asked = "full fine-tuning" if isinstance(lora, FullTraining) else words(lora.quantization)
    raise ConfigError(
        f"model.path={weights.source}: its weights lie on disk in {words(stored)}, lora asks for {asked}\n"
        f"use {_option(stored)}, or take the 16-bit original of this model"
    )


def words(quantization: Quantization | None) -> str:
    """How a base is held, for people."""
    if quantization is None:
        return "16 or 32 bits"
    if quantization.type is None:
        return "8 bits (int8)"
    return f"4 bits ({quantization.type.name}{', double quantization' if quantization.double else ''})"


def _option(stored: Quantization) -> str:
    if stored.bits == 8:
        return "lora=int8"
    option = "lora=qlora" if stored.type is QuantType.nf4 else "lora=qlora_fp4"
    return option if stored.double else f"{option} lora.quantization.double=false"


def compute_in(config: Any, dtype: Any) -> None:
    """Let weights that lie in 4 bits be multiplied in `dtype`, not in the type they were stored for."""
    found = getattr(config, "quantization_config", None)
    if isinstance(found, dict) and "bnb_4bit_compute_dtype" in found:
        found["bnb_4bit_compute_dtype"] = str(dtype).removeprefix("torch.")


def dequantized(model: Any, dtype: Any) -> Any:
    """The model that weights published in few bits mean, in `dtype`: what an adapter is merged into."""
    kept = getattr(model, "_weight_conversions", None) or []
    model = model.dequantize().to(dtype)
    # Saving would turn back what loading did, which is over for bitsandbytes' own tensors.
    model._weight_conversions = [step for step in kept if not _is_of_bitsandbytes(step)]
    return model


def _is_of_bitsandbytes(step: Any) -> bool:
    return any("bitsandbytes" in type(operation).__module__ for operation in getattr(step, "operations", []))
