"""Values that are fine alone and cannot work together: one line each, before anything is loaded."""

from __future__ import annotations

import math
import re
from typing import Any

from dpo.config.checks.passthrough import ALLOWED, DERIVED, REFUSED
from dpo.config.checks.passthrough_checks import check_values
from dpo.config.checks.rlhf import check_rlhf
from dpo.config.hardware import Checkpointing, Device, Parallel
from dpo.config.lora import FullTraining, Lora, Trainable
from dpo.config.losses import ALONE, PARAMETERS, SINGLE, SORTED, Dpo, FDivergence, Mix, Optimizer, reads
from dpo.config.model import Model
from dpo.config.nearest import nearest
from dpo.config.schema import Config
from dpo.errors import ConfigError, Refused

MOST_SMOOTHING = 0.5
COMMIT_DIGITS = 40
# What rendering hands to a template itself, or takes as an argument of its own.
TEMPLATE_WORDS = frozenset(
    "self messages conversation conversations tools documents chat_template add_generation_prompt tokenize padding "
    "truncation max_length return_tensors return_dict return_assistant_tokens_mask continue_final_message "
    "tokenizer_kwargs strftime_now raise_exception".split()
)


def check_combinations(config: Config) -> None:
    """Raise a ConfigError, or Refused for what would be unsafe."""
    check_model(config.model)
    _check_lora(config.lora, config.model)
    _check_losses(config.dpo)
    _check_soft_labels(config)
    check_rlhf(config)
    _check_trainer(config)
    _check_template_words(config.dataset.chat_template_kwargs)
    _check_parallel(config)
    if config.hardware.device in (Device.cpu, Device.mps) and config.dpo.optimizer is Optimizer.paged_adamw_8bit:
        raise ConfigError("dpo.optimizer=paged_adamw_8bit: needs a CUDA GPU; use dpo.optimizer=adamw on a CPU or Mac")


def check_model(model: Model) -> None:
    """Remote code runs only from one fixed commit that the user has named, and read."""
    if model.trust_remote_code and not _is_commit(model.revision):
        raise Refused(
            f"model.trust_remote_code=true: runs the code of {model.path}, so it needs a pinned commit: "
            f"model.revision=<40 hex digits>, not {model.revision}"
        )


def _is_commit(revision: str) -> bool:
    return len(revision) == COMMIT_DIGITS and set(revision) <= set("0123456789abcdef")


def _check_lora(lora: Trainable, model: Model) -> None:
    quantization = lora.quantization
    if isinstance(lora, FullTraining) and quantization is not None:
        raise ConfigError("lora=full with lora.quantization: quantized weights cannot train; use lora=qlora, or null")
    if isinstance(lora, FullTraining) and model.adapter is not None:
        raise ConfigError("lora=full with model.adapter: full fine-tuning continues no adapter; merge it into the base")
    if model.widen_adapter and model.adapter is None:
        raise ConfigError("model.widen_adapter=true: there is no model.adapter to widen")
    if isinstance(lora, FullTraining) and model.trust_remote_code:
        raise ConfigError("lora=full with model.trust_remote_code: its weights would need code that no commit pins")
    if quantization is not None and quantization.bits == 8 and quantization.double:
        raise ConfigError("lora.quantization.double=true: int8 has no double quantization; set it to false")
    if quantization is not None and (quantization.bits == 4) != (quantization.type is not None):
        kind = "4 bits need nf4 or fp4" if quantization.bits == 4 else "int8 has no type; set it to null"
        raise ConfigError(f"lora.quantization.type={quantization.type and quantization.type.name}: {kind}")
    if isinstance(lora, Lora):
        if lora.target_modules != "all-linear":
            _check_names("target_modules", lora.target_modules, "all-linear, ")
        if lora.exclude_modules is not None:
            _check_names("exclude_modules", lora.exclude_modules, "null, ")


def _check_names(key: str, value: Any, more: str) -> None:
    """A list of module names, or a regular expression over whole names such as `.*layers\\.[0-3]\\..*_proj`."""
    if _is_names(value):
        return
    if not isinstance(value, str) or re.fullmatch(r"[\w-]*", value):
        hint = f"; one name is a list too: [{value}]" if isinstance(value, str) and value else ""
        raise ConfigError(
            f"lora.{key}={value}: must be {more}a list of module names or a pattern over whole names{hint}"
        )
    try:
        re.compile(value)
    except (re.error, RecursionError, OverflowError) as error:
        raise ConfigError(f"lora.{key}={value}: not a regular expression: {error}") from None


def _check_losses(dpo: Dpo) -> None:
    if not dpo.loss:
        raise ConfigError("dpo.loss=[]: must name at least one loss")
    for name in dpo.loss:
        if name not in SINGLE:
            raise ConfigError(f"dpo.loss: there is no loss {name}{nearest(name, SINGLE)}")
    if isinstance(dpo, Mix):
        _check_mix(dpo)
    elif dpo.loss != [found := next(name for name, schema in SINGLE.items() if schema is type(dpo))]:
        raise ConfigError(f"dpo.loss={dpo.loss}: this option is the loss {found}; take dpo=NAME, or dpo=mpo for a list")
    smoothing = getattr(dpo, "label_smoothing", None)
    if smoothing is not None and not smoothing < MOST_SMOOTHING:
        raise ConfigError(f"dpo.label_smoothing={smoothing}: must be below 0.5; from there on it inverts preferences")
    if "exo_pair" in dpo.loss and smoothing == 0:
        raise ConfigError("dpo.label_smoothing=0: exo_pair needs it above 0; its paper takes 0.001")
    if dpo.loss == ["kto"] and dpo.batch_size < 2:
        raise ConfigError("dpo.batch_size=1 with dpo=kto: each prompt is compared with another's answers; at least 2")
    divergence = getattr(dpo, "f_divergence_type", None)
    coefficient = getattr(dpo, "f_alpha_divergence_coef", None)
    if divergence is FDivergence.alpha_divergence and coefficient is None:
        raise ConfigError("dpo.f_divergence_type=alpha_divergence: needs dpo.f_alpha_divergence_coef, as 0.5")
    if divergence is not FDivergence.alpha_divergence and coefficient is not None:
        raise ConfigError(f"dpo.f_alpha_divergence_coef={coefficient}: only alpha_divergence reads it; set it to null")


def _check_mix(dpo: Mix) -> None:
    if alone := [name for name in dpo.loss if name in ALONE]:
        raise ConfigError(f"dpo.loss={dpo.loss}: {alone[0]} goes with no other loss; take dpo={alone[0]}")
    if len(set(dpo.loss)) < len(dpo.loss):
        raise ConfigError(f"dpo.loss={dpo.loss}: names a loss twice; add up its weights instead")
    if len(dpo.loss_weights) != len(dpo.loss):
        raise ConfigError(f"dpo.loss_weights={dpo.loss_weights}: must be {len(dpo.loss)} numbers, one a loss")
    if not all(0 < weight < math.inf for weight in dpo.loss_weights):
        raise ConfigError(f"dpo.loss_weights={dpo.loss_weights}: each must be above 0")
    read = set[str]().union(*(reads(name) for name in dpo.loss))
    for name in PARAMETERS:
        value = getattr(dpo, name)
        if value not in (None, False) and name not in read:
            raise ConfigError(f"dpo.{name}={_text(value)}: none of {', '.join(dpo.loss)} reads it; set it to null")
    needed = [name for name in ("label_smoothing", "discopop_tau") if name in read and getattr(dpo, name) is None]
    if needed:
        raise ConfigError(f"dpo.{needed[0]}: needs a value, a loss of {', '.join(dpo.loss)} reads it")
    deaf = [name for name in dpo.loss if name != "sft" and "f_divergence_type" not in reads(name)]
    if dpo.f_divergence_type not in (None, FDivergence.reverse_kl) and deaf:
        raise ConfigError(
            f"dpo.f_divergence_type={_text(dpo.f_divergence_type)}: {deaf[0]} is not a function of the reward "
            "difference, so it has no other divergence"
        )
    unweighted = [name for name in dpo.loss if name in SORTED or name == "sft"]
    if dpo.use_weighting and unweighted:
        raise ConfigError(f"dpo.use_weighting=true: {unweighted[0]} has no term per pair to weigh; set it to false")


def _check_soft_labels(config: Config) -> None:
    if not config.dataset.soft_labels:
        return
    if config.dpo.loss != ["sigmoid"]:
        raise ConfigError(
            f"dataset.soft_labels=true with dpo.loss={config.dpo.loss}: only dpo=sigmoid learns from soft labels"
        )
    for name in ("ld_alpha", "use_weighting", "f_divergence_type"):
        value = getattr(config.dpo, name)
        if value not in (None, False, FDivergence.reverse_kl):
            raise ConfigError(f"dataset.soft_labels=true with dpo.{name}={_text(value)}: soft labels go without it")


def _check_trainer(config: Config) -> None:
    dpo = config.dpo
    for name in dpo.trainer:
        if name in DERIVED:
            raise ConfigError(f"dpo.trainer.{name}: decided by {DERIVED[name]}; set that instead")
        if name in REFUSED:
            raise ConfigError(f"dpo.trainer.{name}: cannot be changed here")
        if name not in ALLOWED:
            raise ConfigError(f"dpo.trainer.{name}: not a field of TRL's DPOConfig{nearest(name, ALLOWED)}")
    check_values(dpo.trainer)
    if (
        config.hardware.activation_checkpointing is Checkpointing.off
        and "activation_checkpointing_kwargs" in dpo.trainer
    ):
        raise ConfigError(
            "dpo.trainer.activation_checkpointing_kwargs: has no effect with activation_checkpointing=off"
        )


def _check_template_words(words: dict[str, Any]) -> None:
    for name in words:
        if name in TEMPLATE_WORDS or not str(name).isidentifier():
            raise ConfigError(f"dataset.chat_template_kwargs.{name}: decided here; name switches of the template's own")


def _check_parallel(config: Config) -> None:
    hardware, parallel = config.hardware, config.hardware.parallel
    if hardware.device is Device.mps and parallel is not Parallel.none:
        raise ConfigError(
            f"hardware.device=mps with hardware.parallel={parallel.name}: a Mac has one GPU; set it to none"
        )
    if hardware.device is Device.mps and getattr(config.lora, "dropout", 0) > 0:
        raise ConfigError(
            "hardware.device=mps with lora.dropout: a checkpoint cannot hold Metal's random state; set it to 0"
        )
    if hardware.device is Device.mps and config.lora.quantization is not None:
        raise ConfigError(
            "hardware.device=mps with a quantized base: bitsandbytes has no 4-bit or int8 kernels of its own there; "
            "use lora=lora"
        )
    if parallel is Parallel.none:
        if hardware.processes not in (None, 1):
            raise ConfigError(f"hardware.processes={hardware.processes}: set hardware.parallel=ddp as well")
        return
    if coupled := SORTED & set(config.dpo.loss):
        raise ConfigError(
            f"hardware.parallel={parallel.name} with dpo.loss {min(coupled)}: it sorts the pairs of a whole step, "
            "which no device would hold; set hardware.parallel=none"
        )
    if parallel is Parallel.ddp:
        return
    if config.lora.quantization is not None and config.lora.quantization.bits == 8:
        raise ConfigError(
            f"hardware.parallel={parallel.name} with an int8 base: its scales lie inside the weights, which cannot be "
            "cut; use 4 bits (lora=qlora), or hardware.parallel=ddp"
        )
    if config.dpo.optimizer is Optimizer.paged_adamw_8bit:
        raise ConfigError(
            f"hardware.parallel={parallel.name} with dpo.optimizer=paged_adamw_8bit: bitsandbytes steps on whole "
            "tensors only; use dpo.optimizer=adamw, or hardware.parallel=ddp"
        )


def _text(value: Any) -> Any:
    return value.name if isinstance(value, FDivergence) else value


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(name, str) for name in value)
