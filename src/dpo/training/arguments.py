"""Our config as TRL's DPOConfig and the few plain values it does not know."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from dpo.config.lora import Lora
from dpo.config.losses import OWN_PARAMETERS, PARAMETERS, RLHF, Dpo, FDivergence
from dpo.config.schema import Config
from dpo.losses.objective import Objective
from dpo.modeling.device import Compute

NEVER = 10**9


def build_arguments(config: Config, compute: Compute, folder: Path, activation_checkpointing: bool = False) -> Any:
    """DPOConfig for one process: every field that another key decides is set here and nowhere else."""
    from trl.trainer.dpo_config import DPOConfig

    dpo = config.dpo
    # transformers renamed the field; both names are in use among the versions we support.
    names = {field.name for field in dataclasses.fields(DPOConfig)}
    checkpointing = "activation_checkpointing" if "activation_checkpointing" in names else "gradient_checkpointing"
    # TRL turns it on by default; here the memory plan decides.
    extra: dict[str, Any] = {checkpointing: activation_checkpointing, **dpo.trainer}
    return DPOConfig(
        output_dir=str(folder / "checkpoints"),
        seed=config.seed,
        per_device_train_batch_size=dpo.batch_size,
        per_device_eval_batch_size=dpo.batch_size,
        gradient_accumulation_steps=1,
        num_train_epochs=dpo.epochs,
        max_steps=dpo.max_steps if dpo.max_steps is not None else -1,
        learning_rate=dpo.learning_rate,
        lr_scheduler_type=dpo.scheduler.value,
        # Below 1 the Trainer reads warm-up steps as a ratio of all steps.
        warmup_steps=dpo.warmup_ratio,
        optim=dpo.optimizer.value,
        weight_decay=dpo.weight_decay,
        max_grad_norm=dpo.max_grad_norm,
        loss_type=list(dpo.loss),
        beta=dpo.beta,
        **loss_parameters(dpo),
        bf16=compute.bf16,
        fp16=False,
        use_cpu=compute.device == "cpu",
        max_length=None,
        # PEFT's dropout must stay alive when asked for; that of the base is off (modeling.randomness).
        disable_dropout=not (isinstance(config.lora, Lora) and config.lora.dropout > 0),
        logging_strategy="steps",
        logging_steps=dpo.log_every,
        logging_nan_inf_filter=False,
        eval_strategy="steps",
        eval_steps=dpo.eval_every or NEVER,
        save_strategy="steps",
        save_steps=dpo.save_every,
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=compute.device == "cuda",
        **extra,
    )


def objective(dpo: Dpo, soft_labels: bool = False) -> Objective:
    """What is minimized; soft labels are ours, all else is TRL's. For RLHF, a loss of pairs that needs the same of an
    engine."""
    if RLHF & set(dpo.loss):
        return Objective(("sigmoid",), dpo.beta)
    given = loss_parameters(dpo) | {name: getattr(dpo, name) for name in OWN_PARAMETERS if hasattr(dpo, name)}
    weights = tuple(given.pop("loss_weights", ()))
    return Objective(tuple(dpo.loss), dpo.beta, weights, soft_labels=soft_labels, **given)


def loss_parameters(dpo: Dpo) -> dict[str, Any]:
    """What the option's losses read beyond beta, under TRL's names; null leaves TRL's neutral value."""
    fields = {field.name for field in dataclasses.fields(dpo)}
    found: dict[str, Any] = {}
    for name in [*PARAMETERS, "loss_weights"]:
        value = getattr(dpo, name) if name in fields else None
        if value is not None:
            found[name] = value.value if isinstance(value, FDivergence) else value
    return found
