"""The model, what is trained of it and the engine that computes it, in this order, become a trainer."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

from dpo.config.hardware import Parallel
from dpo.config.lora import FullTraining, Lora
from dpo.config.losses import Rloo
from dpo.config.schema import Config
from dpo.data.prepare import Prepared
from dpo.data.token_file import Selection
from dpo.engine.choice import Choice, choose_engine
from dpo.engine.memory import NeedOf
from dpo.engine.work import NOTHING, PROMPTS, work_of
from dpo.errors import ConfigError
from dpo.losses.table import LOSSES
from dpo.modeling import reach
from dpo.modeling.adapter import load_into
from dpo.modeling.device import describe
from dpo.modeling.footprint import footprint
from dpo.modeling.inspection import adapted, adapting, excluded, inspect
from dpo.modeling.magnitudes import set_magnitudes
from dpo.modeling.policy import load_base, with_adapter
from dpo.modeling.reward_head import is_reward
from dpo.training import checkpoints
from dpo.training import trainer as trainers
from dpo.training.arguments import build_arguments, objective
from dpo.training.base import Base
from dpo.training.checks.probe import check_scores, router_loss_fails
from dpo.training.continuing import facts_of, kept_split
from dpo.training.job import Job
from dpo.training.rlhf.build import finish_rloo
from dpo.training.rlhf.draws import Longest
from dpo.training.rlhf.reward import reward_loss
from dpo.training.rlhf.rloo import RlooTrainer


def build_trainer(
    job: Job,
    base: Base,
    data: Prepared,
    needed: Selection,
    checkpoint: checkpoints.Checkpoint | None,
    measure: NeedOf | None = None,
    load: Callable[..., Any] | None = None,
) -> trainers.Trainer:
    """Load the model, add what is trainable, and wrap both in TRL's trainer with our engine, which splits steps as
    the run did that wrote `checkpoint`; `needed` are the pairs it will read.

    `measure` says what a step takes, see `choose_engine`; `load` stands in for `load_base`.
    """
    import torch
    from transformers import set_seed

    config, record = job.config, job.run.record
    with job.ledger.phase("load"):
        full = isinstance(config.lora, FullTraining)
        model = (load or load_base)(
            base.weights, config.lora.quantization, base.compute, config.hardware.attention, full
        )
        found = inspect(model, config.lora, config.hardware.attention)
        # Weights without contents answer no question about gradients.
        silent = [] if load else reach.silent_layers(model, config.lora)
        set_seed(config.seed)
        with adapting():
            model = with_adapter(model, config.lora, excluded(model, config.lora, silent), is_reward(config))
        choice = choose(job, base, model, needed, kept_split(job, checkpoint), measure)
        if choice.activation_checkpointing:
            model.enable_input_require_grads()
        trainer = trainer_class(config, job.ranks.size)(
            model=model,
            args=build_arguments(config, base.compute, job.run.folder, choice.activation_checkpointing),
            engine=choice.engine,
            tokenizer=base.tokenizer,
            train_pairs=data.train,
            dev_pairs=list(data.dev[: config.dpo.eval_limit]),
            interrupts=job.interrupts,
            checkpoint_root=job.run.folder / "checkpoints",
            fingerprints=record["fingerprints"],
            ranks=job.ranks,
            soft_labels=config.dataset.soft_labels,
        )
        # TRL casts the adapters of a quantized base to bf16, where a small update is rounded away. In fp32 they
        # keep it; autocast still multiplies in bf16 on a GPU.
        for parameter in trainer.model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.to(torch.float32)
        set_magnitudes(trainer.model)
        if base.adapter is not None:
            assert isinstance(config.lora, Lora)
            load_into(trainer.model, base.adapter, config.lora)
        trainer.facts = lambda: facts_of(job)
        trainer.work = work_of(trainer.model, choice.activation_checkpointing)
        trainer.on_work = lambda operations, phase="train": job.ledger.count(phase, flops=operations)
        if is_reward(config):
            trainer.logits = NOTHING
        elif any(LOSSES[name].of_prompts for name in config.dpo.loss if name in LOSSES):
            trainer.logits = PROMPTS
        if isinstance(config.dpo, Rloo):
            finish_rloo(job, base, trainer)
        job.ranks.same_start(trainer.model.parameters())
        found += f", {adapted(trainer.model, config.lora)}{reach.describe(silent)}"
        with trainer.accelerator.autocast():
            check_scores(trainer.model, data.train[0], base.compute.dtype, config.model.path)
            if trainer.aux_loss_enabled and router_loss_fails(trainer.model, data.train[0]):
                family = model.config.model_type
                if config.dpo.trainer.get("router_aux_loss_coef"):
                    raise ConfigError(f"dpo.trainer.router_aux_loss_coef: TRL has no router loss for {family}; use 0")
                trainer.aux_loss_enabled = False
                found += f", no router loss as TRL has none for {family}"
    job.interrupts.check()
    end = base.tokenizer.convert_ids_to_tokens(record["end_of_turn"])
    job.say(f"inspected: {found}, answers end with {end}")
    job.say(f"{describe(base.compute)}, {str(base.compute.dtype)[6:]}, {choice.line}")
    size = footprint(trainer.model, config.dpo.optimizer.value)
    job.run.update(footprint=asdict(size))
    job.say(str(size))
    return trainer


def choose(
    job: Job, base: Base, model: Any, pairs: Selection, split: tuple[int, int] | None, measure: NeedOf | None = None
) -> Choice:
    """The engine of a model with its adapters, which splits steps as `split` or as the run began."""
    config, record = job.config, job.run.record
    choice = choose_engine(
        model,
        Longest(pairs, config.dpo.max_new_tokens) if isinstance(config.dpo, Rloo) else pairs,
        config,
        base.compute,
        objective(config.dpo, config.dataset.soft_labels),
        job.ranks,
        split or (record.get("token_budget"), record.get("at_once")),
        measure,
    )
    if is_reward(config):
        choice = replace(choice, engine=replace(choice.engine, loss=reward_loss(choice.engine.name)))
    engine = choice.engine
    job.run.update(token_budget=engine.budget, at_once=engine.workers.count, engine=engine.name)
    return choice


def trainer_class(config: Config, size: int) -> Callable[..., trainers.Trainer]:
    """The trainer of one process or whole weights on each, or the one that spreads them; or that draws its pairs."""
    parallel = config.hardware.parallel
    if isinstance(config.dpo, Rloo):
        return RlooTrainer
    if size == 1 or parallel is Parallel.ddp:
        return trainers.Trainer
    from dpo.training.sharded import ShardedTrainer

    return functools.partial(ShardedTrainer, reshard=parallel is not Parallel.zero2)
