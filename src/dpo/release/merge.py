"""Merging an adapter into 16- or 32-bit weights.

Never into quantized ones: PEFT would dequantize, add and quantize again, and the error of that is larger than what
the adapter does. Each layer is added up in fp32 and rounded once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dpo.errors import ConfigError, Diverged
from dpo.release.rounding import StochasticRounding

FORCING = (
    "suppress_tokens begin_suppress_tokens bad_words_ids forced_bos_token_id forced_eos_token_id min_length "
    "max_length max_new_tokens no_repeat_ngram_size min_new_tokens exponential_decay_length_penalty sequence_bias"
).split()
"""Generation settings that put tokens into answers or keep them out, the end included, or end them elsewhere."""


def merge(model: Any, rounded: Callable[[Any], Any]) -> Any:
    """W + scale * B A of every layer (LoRA, arXiv:2106.09685, equation 3); returns the plain model.

    Args:
        model: a PeftModel on an unquantized base. It is changed in place.
        rounded: what becomes of each sum, an fp32 tensor.

    Raises:
        Diverged: the adapter holds a number that is not finite.
        ValueError: the base is quantized.
    """
    import torch
    from peft.tuners.tuners_utils import BaseTunerLayer

    with torch.no_grad():
        for name, layer in model.named_modules():
            if not isinstance(layer, BaseTunerLayer):
                continue
            # Experts lie in parameters of their own names.
            weight: Any = getattr(layer.get_base_layer(), getattr(layer, "parameter_name", "weight"))
            if not weight.is_floating_point() or hasattr(weight, "quant_state"):
                raise ValueError(f"{name}: an adapter is not merged into quantized weights")
            weight.data = weight.data.to(torch.float32)
            try:
                layer.merge(safe_merge=True)
            except ValueError as error:
                raise Diverged(f"{name}: the adapter cannot be merged: {str(error).splitlines()[0]}") from None
            weight.data = rounded(weight.data)
    return model.base_model.unload()


def cast(model: Any, rounded: StochasticRounding) -> Any:
    """Round every weight, in place; raises ConfigError when one is too large for the type (fp16 ends at 65504)."""
    import torch

    for name, parameter in model.named_parameters():
        parameter.data = rounded(parameter.data)
        if not bool(torch.isfinite(parameter).all()):
            kind = str(rounded.dtype)[6:]
            raise ConfigError(f"format: {name} holds a number that {kind} cannot; use format=bf16 or fp32")
    return model.to(rounded.dtype)


def prepare_settings(model: Any, tokenizer: Any, stop_ids: set[int], source: str) -> None:
    """Make the config and generation settings right for whoever loads the folder: cache on, turns end, pads known."""
    config, generation = model.config, model.generation_config
    config.use_cache = True
    config._name_or_path = source
    head = model.get_output_embeddings()
    if head is not None:
        # A folder may hold a head of its own and say that it has none; loaders that believe it would drop the head.
        config.tie_word_embeddings = head.weight is model.get_input_embeddings().weight
    config.pad_token_id = tokenizer.pad_token_id
    generation.use_cache = True
    ends = sorted(stop_ids)
    generation.eos_token_id = ends[0] if len(ends) == 1 else ends
    generation.pad_token_id = tokenizer.pad_token_id
    # Answers were taught to end, and measured, without what a base forces on every answer.
    for name in FORCING:
        if getattr(generation, name, None) is not None:
            print(
                f"generation_config: the base's {name} left out; it would keep answers from being and ending as trained"
            )
            setattr(generation, name, None)
    # Some bases come with a temperature but without do_sample; transformers refuses to save that.
    if generation.temperature is not None or generation.top_p is not None or generation.top_k is not None:
        generation.do_sample = True
