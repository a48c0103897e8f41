"""The policy: a frozen, possibly quantized base and what is trainable on it; and a trained one read from a run."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dpo.config.folder import conf_folder
from dpo.config.lora import FullTraining, Lora, Quantization, Trainable
from dpo.config.read import read_config
from dpo.config.schema import Config
from dpo.errors import CheckpointError, ConfigError, DpoError, Refused
from dpo.modeling.device import Compute, choose_compute
from dpo.modeling.facts import check_base, check_config, check_final, check_print, check_start
from dpo.modeling.footprint import footprint
from dpo.modeling.loading import load_counted
from dpo.modeling.modes import keep_quantized_in_train_mode
from dpo.modeling.reward_head import add_head, is_reward, without_head
from dpo.modeling.stored import compute_in, dequantized, stored_quantization
from dpo.modeling.tokenizer import load_tokenizer, tokenizer_fingerprint
from dpo.modeling.trained_adapter import put_on
from dpo.modeling.weights import Weights, check_unchanged, resolve
from dpo.records.run import read_record

# The starting adapter in a run directory, and its name beside the trained one in a model.
REFERENCE = "reference"
TRUST = "DPO_TRUST_REMOTE_CODE"


def load_base(
    weights: Weights,
    quantization: Quantization | None,
    compute: Compute,
    attention: str,
    trainable: bool = False,
    error: type[DpoError] = ConfigError,
) -> Any:
    """Load the causal language model on its device; safetensors only, code of its own only where it is trusted.

    A base that trains (full fine-tuning) is held in fp32 so that small updates are not rounded away; a frozen one
    in the compute type. Raises ConfigError when transformers has no such causal model, `error` when it lacks tensors.
    """
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    config = model_config(weights)
    # What lies quantized on disk stays as it is.
    if stored_quantization(weights.folder, weights.source) is not None:
        quantization = None
        compute_in(config, compute.dtype)
    try:
        model = load_counted(
            AutoModelForCausalLM,
            weights.folder,
            weights.named,
            error,
            config=config,
            dtype=torch.float32 if trainable else compute.dtype,
            quantization_config=quantization_config(quantization, compute),
            attn_implementation=usable_attention(config, attention),
            device_map={"": 0 if compute.device == "cuda" else compute.device},
            trust_remote_code=weights.remote_code,
        )
    except (ImportError, ValueError) as found:
        first = str(found).strip().splitlines()[0][:200]
        if not ("attention" in first.lower() or "flash_attn" in first.lower()):
            raise
        raise ConfigError(f"hardware.attention={attention}: {first}") from found
    if weights.fingerprint:
        check_unchanged(weights)
    model.config.use_cache = False
    model.config._name_or_path = weights.source
    return model


def usable_attention(config: Any, attention: str) -> str:
    """`attention`, or eager for families whose attention has no other form here (soft caps, sinks, alibi)."""
    from transformers import AutoModelForCausalLM

    mapping = AutoModelForCausalLM._model_mapping
    if attention != "sdpa" or type(config) not in mapping:
        return attention
    return attention if getattr(mapping[type(config)], "_supports_sdpa", True) else "eager"


def model_config(weights: Weights) -> Any:
    """transformers' config of a causal language model; raises ConfigError or Refused (it needs code of its own)."""
    from transformers import AutoConfig, AutoModelForCausalLM

    what = weights.named
    raw = json.loads((weights.folder / "config.json").read_text(encoding="utf-8"))
    try:
        config = AutoConfig.from_pretrained(weights.folder, trust_remote_code=weights.remote_code)
    except Exception as error:
        if raw.get("auto_map") and not weights.remote_code:
            raise Refused(
                f"{what}: its architecture {raw['model_type']} is code of its own, which runs only with\n"
                "model.trust_remote_code=true and model.revision=<the 40 hex digits of a commit you have read>"
            ) from None
        raise ConfigError(
            f"{what}: architecture {raw['model_type']} cannot be made: {str(error).strip().splitlines()[0][:200]}"
        ) from error
    if type(config) not in AutoModelForCausalLM._model_mapping and not weights.remote_code:
        raise ConfigError(f"{what}: {raw['model_type']} is no causal language model of transformers")
    return config


def quantization_config(quantization: Quantization | None, compute: Compute) -> Any:
    """bitsandbytes' config for transformers, or None."""
    if quantization is None:
        return None
    from transformers import BitsAndBytesConfig

    if quantization.bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True)
    assert quantization.type is not None
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=quantization.type.value,
        bnb_4bit_use_double_quant=quantization.double,
        bnb_4bit_compute_dtype=compute.dtype,
    )


def lora_config(lora: Trainable, excluded: str | list[str] | None = None, reward: bool = False) -> Any:
    """PEFT's LoraConfig, or None for full fine-tuning; `excluded` as `inspection.excluded` finds it. `reward`: with the
    head that `add_head` put on."""
    if not isinstance(lora, Lora):
        return None
    from peft import LoraConfig, TaskType

    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.target_modules,
        exclude_modules=without_head(excluded) if reward else excluded,
        use_rslora=lora.rslora,
        use_dora=lora.dora,
        task_type=TaskType.SEQ_CLS if reward else TaskType.CAUSAL_LM,
    )


def with_adapter(model: Any, lora: Trainable, excluded: str | list[str] | None, reward: bool = False) -> Any:
    """`model` with fresh adapters, drawn from torch's generator; as it is for full fine-tuning."""
    from peft import get_peft_model

    found = lora_config(lora, excluded, reward)
    if reward:
        add_head(model)
    return model if found is None else get_peft_model(model, found)


def _fits_dequantized(model: Any) -> bool:
    """Whether the weights in fp32 take at most a quarter of the free memory."""
    import psutil

    return 4 * footprint(model, "adamw_torch_fused").total < psutil.virtual_memory().available / 4


def templates() -> Path:
    """The folder of fallback chat templates."""
    return conf_folder() / "model" / "templates"


def final_weights(run: Path) -> Path:
    """The folder of a run's final weights; raises CheckpointError when it has none."""
    final = run / "adapter"
    if not any(final.glob("*.safetensors")):
        raise CheckpointError(f"{run}: no final adapter in it; the run has not finished (see its run.json)")
    return final


@contextlib.contextmanager
def baseline(model: Any) -> Iterator[Any]:
    """The unaligned start of a trained PeftModel: the adapter it started from, or the bare base."""
    if REFERENCE not in model.peft_config:
        with model.disable_adapter():
            yield model
        return
    model.set_adapter(REFERENCE)
    try:
        yield model
    finally:
        model.set_adapter("default")


def _check_trusted_here(run: Path, config: Config) -> None:
    """A run directory may be a stranger's: it alone does not make this machine run the code it names."""
    model = config.model
    if model.trust_remote_code and os.environ.get(TRUST) != model.revision:
        raise Refused(
            f"{run}: its model {model.path} runs code of its own at commit {model.revision}\n"
            f"read it, then set {TRUST}={model.revision}"
        )


def base_of(run: Path, config: Config) -> Weights:
    """The weights a run started from, at the commit it was trained on, not at what its branch has become.

    Raises CheckpointError when what lies there now is something else.
    """
    model = config.model
    revision = read_record(run).get("revision") or model.revision
    return check_base(run, resolve(model.path, revision, model.trust_remote_code))


def tokenizer_of(run: Path, config: Config) -> Any:
    """The tokenizer a run was trained with, printing the date it began; raises CheckpointError when it is another."""
    date = read_record(run).get("date")
    if not isinstance(date, str):
        raise CheckpointError(f"{run}/run.json: does not say on which date it began; an earlier version wrote it")
    if config.model.trust_remote_code:
        # Code is trusted where its commit is pinned, not in the run directory.
        weights = base_of(run, config)
        home, template = weights.folder, config.model.chat_template
    else:
        home, template = final_weights(run), None
    tokenizer = load_tokenizer(home, template, templates(), config.model.trust_remote_code, date)
    check_print(run, "tokenizer", tokenizer_fingerprint(tokenizer), str(home))
    return tokenizer


def load_trained(run: Path, compute: Compute | None = None, quantized: bool = True) -> tuple[Any, Any, Config]:
    """Rebuild a finished run's policy from its folder alone: (model, tokenizer, config).

    `compute` replaces the run's own device and type; `quantized=False` puts the adapter on the base as published.
    For an adapter the model is a PeftModel: inside `with baseline(model)` it is the unaligned start.
    Raises CheckpointError when the run has no final weights, Refused when they need code that is not trusted here.
    """
    config = read_config(run / "config.yaml")
    final = final_weights(run)
    _check_trusted_here(run, config)
    check_config(run, config)
    check_final(run)
    compute = compute or choose_compute(config.hardware.device, config.hardware.precision)
    attention = config.hardware.attention
    tokenizer = tokenizer_of(run, config)
    if isinstance(config.lora, FullTraining):
        folder = Weights(final, str(final), None, "", key="")
        model = load_base(folder, None, compute, attention, error=CheckpointError)
    else:
        weights = base_of(run, config)
        quantization = config.lora.quantization if quantized else None
        model = load_base(weights, quantization, compute, attention)
        if not quantized and getattr(model, "hf_quantizer", None) is not None:
            model = dequantized(model, compute.dtype)
        four = quantization is not None and quantization.bits == 4
        if four and compute.device == "cpu" and _fits_dequantized(model):
            # The same numbers, dequantized once instead of at every token: each linear multiplies by these very values.
            # Of int8 that would be another model, as its layers round what goes in as well.
            model = model.dequantize()
        model = put_on(add_head(model) if is_reward(config) else model, final)
        if config.model.adapter is not None:
            check_start(run, run / REFERENCE)
            model = put_on(model, run / REFERENCE, REFERENCE)
    model.eval()
    keep_quantized_in_train_mode(model)
    return model, tokenizer, config
