"""Which models the packed engine may run: the ones whose equality is tested, nothing that merely looks alike."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

VERIFIED = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma3_text")
"""`config.model_type` of the families in tests/engine/test_packed_families.py."""


def refusal(model: torch.nn.Module) -> str | None:
    """None if `model` (plain or PEFT) may run packed, else the reason in a few words."""
    base = unwrapped(model)
    return _peft_refusal(model) or _config_refusal(base) or _module_refusal(base)


def unwrapped(model: torch.nn.Module) -> PreTrainedModel:
    """The transformers model inside a PEFT model, or `model` itself."""
    get_base = getattr(model, "get_base_model", None)
    base: Any = get_base() if callable(get_base) else model
    return base


def _config_refusal(base: Any) -> str | None:
    config = getattr(base, "config", None)
    kind = getattr(config, "model_type", None)
    if config is None or kind not in VERIFIED:
        return f"model type {kind!r} is not verified for packed batches (verified: {', '.join(VERIFIED)})"
    if not hasattr(base, "get_output_embeddings"):
        return f"{type(base).__name__} has no LM head"
    if not getattr(config, "is_causal", True) or getattr(config, "use_bidirectional_attention", False):
        return "attention is not causal"
    if getattr(config, "attn_logit_softcapping", None) is not None:
        return "attention scores are soft-capped"
    for rope in _rope_settings(config):
        if rope.get("rope_type", "default") in ("dynamic", "longrope"):
            return f"rope type {rope['rope_type']!r} depends on the longest position of a batch"
    attention = config._attn_implementation
    if attention not in ("sdpa", "eager") and not str(attention).startswith("dpo_packed_"):
        return f"attention implementation {attention!r} (packed stands in for sdpa and eager only)"
    return None


def _rope_settings(config: Any) -> list[dict[str, Any]]:
    settings = getattr(config, "rope_parameters", None) or {}
    nested = [value for value in settings.values() if isinstance(value, dict)]
    return nested or [settings]


def _module_refusal(base: Any) -> str | None:
    head = base.get_output_embeddings()
    if type(head) is not torch.nn.Linear:
        return f"the LM head is a {type(head).__name__}, not a plain linear layer"
    if len(set(getattr(base, "hf_device_map", {}).values())) > 1:
        return "the model is split across devices"
    return None


def _peft_refusal(model: Any) -> str | None:
    for name, config in (getattr(model, "peft_config", None) or {}).items():
        kind = getattr(config.peft_type, "value", config.peft_type)
        if kind != "LORA":
            return f"adapter {name!r} is of type {kind}, only LORA is verified"
        if getattr(config, "alora_invocation_tokens", None):
            return f"adapter {name!r} is an activated LoRA, which reads the padded token ids"
    return None
