"""The stages of a training run, in the order `dpo.train` calls them. Each charges its time to the ledger."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from dpo.caches.folder import cache_folder
from dpo.caches.reference import ReferenceCache, context_key
from dpo.config.hardware import Parallel
from dpo.config.lora import FullTraining, Lora
from dpo.config.parse import plain
from dpo.data.pair import TokenPair
from dpo.data.prepare import Prepared, prepare
from dpo.data.remarks import check_positions, remarks
from dpo.data.token_file import Selection
from dpo.distributed.plans import fsdp_plugin
from dpo.engine.attention import path
from dpo.engine.choice import choose_engine
from dpo.engine.install import installed
from dpo.engine.room import cap_device
from dpo.engine.score import sequence_log_probs
from dpo.errors import DiskFull, is_disk_full
from dpo.modeling.adapter import Adapter, load_into
from dpo.modeling.device import Compute, card_uuid, choose_compute, describe
from dpo.modeling.facts import built, final_files
from dpo.modeling.footprint import footprint
from dpo.modeling.inspection import adapted, adapting, excluded, inspect
from dpo.modeling.policy import load_base, lora_config, model_config, templates
from dpo.modeling.positions import positions
from dpo.modeling.stored import check_stored
from dpo.modeling.tokenizer import load_tokenizer, tokenizer_fingerprint
from dpo.modeling.weights import Weights, resolve
from dpo.records.files import sync_folder
from dpo.records.progress import CountProgress, TrainingProgress
from dpo.records.tracking import NoTracker, Tracker, build_tracker
from dpo.release.card import model_card
from dpo.training import checkpoints, guards
from dpo.training import trainer as trainers
from dpo.training.arguments import build_arguments
from dpo.training.continuing import facts_of, kept_split
from dpo.training.job import Job, exit_code
from dpo.training.order import epoch_order
from dpo.training.probe import check_scores
from dpo.training.start import check_device, find_adapter

IDENTITY_PAIRS = 32
# Fixed, so that a reference log-prob does not depend on how much memory was free when it was computed.
REFERENCE_TOKENS = 4096


@dataclass(frozen=True)
class Base:
    """The resolved weights, the adapter to start from if any, their tokenizer, and what to compute with."""

    weights: Weights
    adapter: Adapter | None
    tokenizer: Any
    compute: Compute
    positions: int | None
    """How long a sequence the model was made for; None where nothing bounds it."""


def find_base(job: Job) -> Base:
    """Resolve device, weights and tokenizer; nothing heavy is loaded yet, so faults show early."""
    config = job.config
    with job.ledger.phase("load"), job.ranks.in_turn():
        compute = choose_compute(config.hardware.device, config.hardware.precision)
        check_device(config, compute)
        weights = resolve(config.model.path, config.model.revision, config.model.trust_remote_code)
        # The day the run began: a template that prints the date renders the same when it is continued or read.
        began = datetime.fromtimestamp(job.run.record["created"], UTC).date().isoformat()
        date = job.run.record.setdefault("date", began)
        tokenizer = load_tokenizer(weights.folder, config.model.chat_template, templates(), weights.remote_code, date)
        longest = positions(model_config(weights))
        check_stored(weights, config.lora)
        adapter = find_adapter(job)
    job.interrupts.check()
    if compute.device == "cuda":
        import torch

        job.ledger.devices = job.ranks.size
        job.ledger.device_peak_mb = lambda: torch.cuda.max_memory_allocated() / 2**20
        job.ledger.count_energy_of(job.ranks.gather(card_uuid()))
        cap_device(config.hardware.memory_gb)
    elif compute.device == "mps":
        import torch

        job.ledger.devices = 1
        job.ledger.device_peak_mb = lambda: torch.mps.driver_allocated_memory() / 2**20
    job.run.record["fingerprints"]["base"] = weights.fingerprint
    job.run.record["fingerprints"]["tokenizer"] = tokenizer_fingerprint(tokenizer)
    job.run.record["built"] = built(config)
    job.run.record["fingerprints"] |= {"device": compute.device, "precision": str(compute.dtype)[6:]}
    # Another number of ranks gives the same step up to rounding only, and other dropout masks.
    job.run.record["fingerprints"]["processes"] = str(job.ranks.size)
    if job.ranks.size > 1 and config.hardware.parallel is not Parallel.ddp:
        job.run.record["fingerprints"]["parallel"] = config.hardware.parallel.name
    job.run.update(device=describe(compute), processes=job.ranks.size, revision=weights.revision)
    return Base(weights, adapter, tokenizer, compute, longest)


def load_data(job: Job, base: Base) -> Prepared:
    """Checked, tokenized pairs."""
    with job.ledger.phase("tokenize"), job.ranks.in_turn():
        data = prepare(job.config.dataset, base.tokenizer)
    job.interrupts.check()
    job.run.record["fingerprints"]["data"] = data.fingerprint
    job.run.record["end_of_turn"] = data.report["template"]["end_of_turn"]
    job.run.save()
    job.say(f"{len(data.train)} training pairs, {len(data.dev)} dev, {len(data.test)} test")
    beyond = check_positions(data.report, base.positions, base.weights.source)
    for line in [*remarks(data.report), *([beyond] if beyond else [])]:
        job.say(line)
    return data


def build_trainer(job: Job, base: Base, data: Prepared, checkpoint: checkpoints.Checkpoint | None) -> trainers.Trainer:
    """Load the model, add what is trainable, and wrap both in TRL's trainer with our engine, which splits steps as
    the run did that wrote `checkpoint`."""
    import torch
    from transformers import set_seed

    config = job.config
    with job.ledger.phase("load"):
        full = isinstance(config.lora, FullTraining)
        model = load_base(base.weights, config.lora.quantization, base.compute, config.hardware.attention, full)
        found = inspect(model, config.lora, config.hardware.attention)
        set_seed(config.seed)
        with adapting():
            trainer = trainer_class(config.hardware.parallel, job.ranks.size)(
                model=model,
                args=build_arguments(config, base.compute, job.run.folder),
                peft_config=lora_config(config.lora, excluded(model, config.lora)),
                tokenizer=base.tokenizer,
                train_pairs=data.train,
                dev_pairs=list(data.dev[: config.dpo.eval_limit]),
                interrupts=job.interrupts,
                checkpoint_root=job.run.folder / "checkpoints",
                fingerprints=job.run.record["fingerprints"],
                ranks=job.ranks,
            )
        # TRL casts the adapters of a quantized base to bf16, where a small update is rounded away. In fp32 they
        # keep it; autocast still multiplies in bf16 on a GPU.
        for parameter in trainer.model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.to(torch.float32)
        if base.adapter is not None:
            assert isinstance(config.lora, Lora)
            load_into(trainer.model, base.adapter, config.lora)
        trainer.facts = lambda: facts_of(job)
        job.ranks.same_start(trainer.model.parameters())
        line = choose_engine(
            job,
            base.compute,
            trainer,
            needed_pairs(job, data),
            base.tokenizer.pad_token_id,
            kept_split(job, checkpoint),
        )
        found += f", {adapted(trainer.model, config.lora)}"
        with trainer.accelerator.autocast():
            check_scores(trainer.model, data.train[0], base.compute.dtype, config.model.path)
    job.interrupts.check()
    end = base.tokenizer.convert_ids_to_tokens(job.run.record["end_of_turn"])
    job.say(f"inspected: {found}, answers end with {end}")
    job.say(f"{describe(base.compute)}, {str(base.compute.dtype)[6:]}, {line}")
    size = footprint(trainer.model, config.dpo.optimizer.value)
    job.run.update(footprint=asdict(size))
    job.say(str(size))
    return trainer


def trainer_class(parallel: Parallel, size: int) -> Callable[..., trainers.Trainer]:
    """The trainer of one process or whole weights on each, or the one that spreads them."""
    if size == 1 or parallel is Parallel.ddp:
        return trainers.Trainer
    from dpo.training.sharded import ShardedTrainer

    return functools.partial(ShardedTrainer, plugin=fsdp_plugin(parallel))


def needed_pairs(job: Job, data: Prepared) -> Selection:
    """The pairs this run will read: of train all, or the first of its order when max_steps ends sooner; then of dev.

    They stay on disk: a full dataset as Python integers would fill the memory of each rank.
    """
    dpo = job.config.dpo
    dev = range(len(data.dev))[: dpo.eval_limit]
    if dpo.max_steps is None or dpo.max_steps * dpo.batch_size >= len(data.train):
        return Selection((data.train, range(len(data.train))), (data.dev, dev))
    order = epoch_order(len(data.train), job.config.seed, 0)
    return Selection((data.train, order[: dpo.max_steps * dpo.batch_size]), (data.dev, dev))


def add_reference(job: Job, base: Base, trainer: trainers.Trainer, pairs: Sequence[TokenPair]) -> None:
    """Give the trainer the reference's log-probs of every pair it will read.

    The reference is the starting policy: adapters off; or, as this comes before a checkpoint is loaded, the model as
    it stands for full fine-tuning and when the run continues an adapter. What any run on this machine has computed
    for the same weights and tokens is taken from the cache.
    """
    config, model = job.config, trainer.model
    computes = path(model, base.compute.dtype) if installed(model) else "plain"
    context = context_key(
        base=base.weights.fingerprint,
        quantization=json.dumps(plain(config.lora.quantization), sort_keys=True),
        adapter=base.adapter.fingerprint if base.adapter is not None else "none",
        precision=str(base.compute.dtype),
        device=base.compute.device,
        attention=f"{computes}-{config.hardware.attention}",
        ld_alpha=trainer.ld_alpha,
    )

    def compute(part: list[TokenPair]) -> list[tuple[float, float]]:
        job.interrupts.check()
        return sequence_log_probs(model, part, REFERENCE_TOKENS, ld_alpha=trainer.ld_alpha)

    cache = ReferenceCache(cache_folder("reference") / "log_probs.sqlite", say=job.say)
    fresh = base.adapter is None and hasattr(model, "disable_adapter")
    off = model.disable_adapter() if fresh else contextlib.nullcontext()
    show = CountProgress("reference log-probs")
    with job.ledger.phase("reference"), off, trainer.accelerator.autocast(), show:
        trainer.reference = cache.fill(pairs, context, compute, progress=show.update)
    # What another rank computed is a hit here.
    hits, misses = cache.counters.hits, sum(job.ranks.gather(cache.counters.misses))
    hits -= misses - cache.counters.misses
    job.ledger.count("reference", pairs=len(pairs), hits=max(0, hits), misses=misses)
    job.say(f"reference: {max(0, hits)} pairs from the cache, {misses} computed")


def check_start(job: Job, trainer: trainers.Trainer, pairs: Sequence[TokenPair], compute: Compute) -> None:
    """Before step 1 the policy is the reference: the log-ratios of the last `IDENTITY_PAIRS` pairs are 0."""
    pairs = list(pairs[-IDENTITY_PAIRS:])
    with trainer.accelerator.autocast():
        scores = sequence_log_probs(trainer.model, pairs, REFERENCE_TOKENS, ld_alpha=trainer.ld_alpha)
    policy = {pair.id: score for pair, score in zip(pairs, scores, strict=True)}
    lengths = {pair.id: (len(pair.chosen_ids), len(pair.rejected_ids)) for pair in pairs}
    worst = guards.check_reference_identity(policy, trainer.reference, lengths, compute.dtype)
    job.run.update(reference_identity=worst)
    job.say(f"reference identity holds: the largest log-ratio before step 1 is {worst:.1g} per token")


def run_steps(job: Job, trainer: trainers.Trainer, checkpoint: checkpoints.Checkpoint | None, compute: Compute) -> None:
    """All steps from the checkpoint (or 0) to the last, with evaluation before, during and after."""
    import torch

    start = checkpoint.step if checkpoint is not None else 0
    steps = trainer.steps_in_all()
    if job.ranks.from_first(job.run.evaluated(start)):
        trainer.evaluated_at = start
    job.run.update(max_steps=steps)
    counted = start  # the steps whose pairs stand in the ledger
    known = set() if checkpoint is None else {checkpoint.folder}
    with (
        job.ledger.phase("train"),
        tracked(job) as tracker,
        TrainingProgress(steps, start, job.config.dpo.batch_size) as progress,
    ):
        if start == 0 and not job.ranks.first:
            # The same weights everywhere, but dropout masks of its own on each rank.
            torch.manual_seed(job.config.seed + job.ranks.rank)

        def log(kind: str, step: int, values: dict[str, float]) -> None:
            nonlocal counted
            if kind == "train":
                values["pairs_per_second"] = progress.pairs_per_second(step)
                job.ledger.count("train", pairs=(step - counted) * job.config.dpo.batch_size)
                counted = step
            job.run.log(kind, step, values)
            tracker.log(kind, step, values)
            progress.show(kind, step, values)
            job.run.record["step"] = step
            if kind == "eval":
                job.run.save()
            if kind == "train" and not job.run.record["footprint"]["measured"]:
                job.run.update(footprint=asdict(footprint(trainer.model, trainer.optimizer)))

        def saved(step: int) -> None:
            job.ledger.flush()
            job.run.update(step=step)
            root = job.run.folder / "checkpoints"
            known.add(root / f"step-{step}")
            checkpoints.rotate(root, job.config.dpo.keep_checkpoints, known, job.run.record["id"])

        if job.ranks.first:
            trainer.on_log, trainer.on_saved = log, saved
        with job.interrupts.deferred():
            if start == 0:
                metrics = trainer.evaluate_now()
                if metrics:
                    guards.check_start_loss(metrics["loss"], job.config.dpo, compute.dtype)
            if start < steps:
                trainer.train(resume_from_checkpoint=str(checkpoint.folder) if checkpoint is not None else None)
            else:
                trainer._load_from_checkpoint(str(checkpoint.folder))  # type: ignore[union-attr]
                trainer.state.global_step = start
                if trainer.lacks_evaluation():
                    # `train` would have: without it the adapters would multiply in another precision.
                    trainer.accelerator.prepare_model(trainer.model, evaluation_mode=True)
                    trainer.evaluate_now()
            if trainer.state.global_step >= steps and not trainer.lacks_evaluation():
                job.interrupts.pending = None


@contextlib.contextmanager
def tracked(job: Job) -> Iterator[Tracker]:
    """The tracker of this run, always closed with the truth."""
    if not job.ranks.first:
        yield NoTracker()
        return
    tracker = build_tracker(job.config.tracking, job.run.folder, plain(job.config), os.environ.get("DPO_SWEEP"))
    job.say(f"tracking: {tracker.where}")
    try:
        yield tracker
    except BaseException as error:
        tracker.finish(exit_code(error))
        raise
    tracker.finish(0)


def save_final(job: Job, trainer: trainers.Trainer, tokenizer: Any) -> None:
    """Write adapter/ (weights, tokenizer, model card), whole or not at all."""
    trainer.collect()
    if not job.ranks.first:
        return
    final, aside = job.run.folder / "adapter", job.run.folder / ".tmp-adapter"
    shutil.rmtree(aside, ignore_errors=True)
    try:
        trainer.save_weights(aside)
        tokenizer.save_pretrained(aside)
        (aside / "README.md").write_text(model_card(job.run.folder), encoding="utf-8")
        shutil.rmtree(final, ignore_errors=True)
        os.replace(aside, final)
        sync_folder(job.run.folder)
        job.run.update(final=final_files(final))
    except Exception as error:
        if not is_disk_full(error):
            raise
        raise DiskFull(f"{final}: no space left; the checkpoints are intact; free some room and run again") from None
