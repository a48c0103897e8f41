"""What other tools call the things that have a key here, so that an unknown word is answered with the known one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from omegaconf import DictConfig, OmegaConf

from dpo.config.identity import flat
from dpo.config.losses import unread

# Of transformers, TRL, PEFT, bitsandbytes and common shorthand: their word -> ours.
WORDS = {
    theirs: ours
    for ours, theirs_all in {
        "dpo.learning_rate": "lr learning_rate",
        "dpo.batch_size": "per_device_train_batch_size train_batch_size batch_size bs gradient_accumulation_steps",
        "dpo.epochs": "num_train_epochs num_epochs n_epochs epochs",
        "dpo.max_steps": "max_steps steps",
        "dpo.beta": "beta dpo_beta",
        "dpo": "loss_type loss",
        "dpo.optimizer": "optim optimizer",
        "dpo.scheduler": "lr_scheduler_type lr_scheduler",
        "dpo.warmup_ratio": "warmup_ratio warmup_steps warmup",
        "dpo.max_grad_norm": "max_grad_norm grad_clip gradient_clipping",
        "dpo.weight_decay": "weight_decay",
        "dpo.label_smoothing": "label_smoothing label_smoothing_factor",
        "dpo.log_every": "logging_steps",
        "dpo.eval_every": "eval_steps eval_strategy evaluation_strategy",
        "dpo.save_every": "save_steps save_strategy",
        "dpo.keep_checkpoints": "save_total_limit",
        "dataset": "dataset_name dataset_source train_file",
        "dataset.max_length": "max_length max_seq_length max_prompt_length max_completion_length max_tokens",
        "dataset.limit": "max_train_samples max_samples num_samples limit",
        "dataset.path": "data_path data_files train_data",
        "lora.rank": "lora_r lora_rank r rank",
        "lora.alpha": "lora_alpha alpha",
        "lora.dropout": "lora_dropout dropout",
        "lora.target_modules": "lora_target_modules target_modules",
        "lora": "use_lora use_peft load_in_4bit load_in_8bit quantization quantization_bits bnb_4bit_quant_type",
        "model.path": "model_name_or_path model_name model_id base_model",
        "model.revision": "model_revision",
        "model.adapter": "adapter_name_or_path adapter",
        "hardware.precision": "bf16 fp16 torch_dtype dtype precision mixed_precision",
        "hardware.activation_checkpointing": "gradient_checkpointing activation_checkpointing",
        "hardware.attention": "attn_implementation attention use_flash_attention",
        "hardware.device": "device device_map",
        "hardware.parallel": "fsdp deepspeed ddp",
        "tracking": "report_to wandb use_wandb",
        "name": "run_name experiment_name exp_name",
        "resume": "resume_from_checkpoint",
        "evaluation.max_new_tokens": "max_new_tokens",
        "evaluation.temperature": "temperature",
        "evaluation.prompts": "num_prompts",
        "evaluation.name": "eval_name",
    }.items()
    for theirs in theirs_all.split()
}
# What is no key here.
ELSEWHERE = {
    "output_dir": "the environment variable DPO_OUTPUTS",
    "logging_dir": "the environment variable DPO_OUTPUTS",
    "ref_model": "nothing to set: the reference is the model before training",
}


MOST_LISTED = 12


def hint(key: str, known: Iterable[str], groups: Iterable[str] = ()) -> str:
    """`; here it is dpo.learning_rate`, or the nearest of `known` (dotted keys), or nothing; begins with a semicolon.

    `groups`: names that choose an option and are no key of their own.
    """
    name = key.strip("+~-").replace("-", "_")
    last = name.rpartition(".")[2].lower()
    keys = sorted(set(known) - {key})
    if last in ELSEWHERE:
        return f"; here it is {ELSEWHERE[last]}"
    ours = WORDS.get(last)
    if ours is not None and ours != key and (ours in keys or ours in groups):
        return f"; here it is {ours}=..."
    alike = [one for one in keys if one.rpartition(".")[2] == last and one != key]
    if len(alike) == 1:
        return f"; nearest: {alike[0]}"
    beside = [one for one in [*keys, *groups] if one.rpartition(".")[0] == name.rpartition(".")[0]]
    close = difflib.get_close_matches(name, beside, n=1, cutoff=0.5)
    close = close or difflib.get_close_matches(name, keys, n=1, cutoff=0.6)
    if not close and (ends := difflib.get_close_matches(last, [one.rpartition(".")[2] for one in keys], n=1)):
        close = [one for one in keys if one.rpartition(".")[2] == ends[0]]
    if close:
        return f"; nearest: {close[0]}"
    return f"; allowed: {', '.join(beside)}" if 0 < len(beside) <= MOST_LISTED else ""


def hint_in(key: str, cfg: DictConfig) -> str:
    """`hint` with the keys of a composed config and its groups; of another loss's key, that its own loss reads it."""
    keys = flat(OmegaConf.to_container(cfg, resolve=False))
    losses = OmegaConf.select(cfg, "dpo.loss") or []
    return unread(key, losses) or hint(key, keys, [str(name) for name in cfg if OmegaConf.is_dict(cfg._get_node(name))])
