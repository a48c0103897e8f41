"""The stages of a training run, in the order `dpo.train` calls them. Each charges its time to the ledger."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dpo.config.arguments import is_override
from dpo.config.lora import Lora
from dpo.config.losses import EXAMPLES
from dpo.config.parse import plain
from dpo.data.prepare import Prepared, prepare
from dpo.data.remarks import check_positions, remarks
from dpo.data.token_file import Selection
from dpo.errors import DataError, DiskFull, is_disk_full
from dpo.modeling.adapter import write_base
from dpo.modeling.device import Compute
from dpo.modeling.facts import final_files
from dpo.modeling.footprint import footprint
from dpo.records.files import sync
from dpo.records.progress import TrainingProgress
from dpo.records.tracking import NoTracker, Tracker, build_tracker
from dpo.training import checkpoints
from dpo.training import trainer as trainers
from dpo.training.base import Base
from dpo.training.checks import guards
from dpo.training.job import Job, exit_code
from dpo.training.order import epoch_order


def load_data(job: Job, base: Base) -> Prepared:
    """Checked, tokenized pairs."""
    with job.ledger.phase("tokenize"), job.ranks.in_turn():
        data = prepare(job.config.dataset, base.tokenizer)
    job.interrupts.check()
    if data.report["single_answers"] is not None and not EXAMPLES & set(job.config.dpo.loss):
        raise DataError(
            f"{data.report['origin']}: single answers (prompt, completion, label), and "
            f"{'+'.join(job.config.dpo.loss)} compares two; take dpo=kto"
        )
    job.run.record["fingerprints"]["data"] = data.fingerprint
    job.run.record["end_of_turn"] = data.report["template"]["end_of_turn"]
    job.run.save()
    job.say(f"{len(data.train)} training pairs, {len(data.dev)} dev, {len(data.test)} test")
    beyond = check_positions(data.report, base.positions, base.steady, base.weights.source)
    for line in [*remarks(data.report), *([beyond] if beyond else [])]:
        job.say(line)
    return data


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


def run_steps(
    job: Job,
    trainer: trainers.Trainer,
    tracker: Tracker,
    checkpoint: checkpoints.Checkpoint | None,
    compute: Compute,
) -> None:
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
                    balance = trainer.router_loss(metrics)
                    if balance:
                        job.say(f"router loss {balance:.4f} in it (dpo.trainer.router_aux_loss_coef=0 leaves it out)")
                    found = metrics["loss"] - balance
                    guards.check_start_loss(found, job.config.dpo, compute.dtype, trainer.dev_pairs)
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
    words = [word for word in sys.argv[1:] if is_override(word)]
    tracker = build_tracker(job.config.tracking, job.run.folder, plain(job.config), job.run.record, words)
    if tracker.known:
        job.run.update(tracked=dict(tracker.known))
    job.say(f"tracking: {tracker.where}")
    try:
        yield tracker
    except BaseException as error:
        tracker.finish(exit_code(error))
        raise
    tracker.finish(0)


def save_final(
    job: Job, trainer: trainers.Trainer, tracker: Tracker, tokenizer: Any, card: Callable[[Path], str]
) -> None:
    """Write adapter/ (weights, tokenizer, and the model card that `card` makes of the run), whole or not at all."""
    trainer.collect()
    if not job.ranks.first:
        return
    final, aside = job.run.folder / "adapter", job.run.folder / ".tmp-adapter"
    shutil.rmtree(aside, ignore_errors=True)
    try:
        trainer.save_weights(aside)
        tokenizer.save_pretrained(aside)
        if isinstance(job.config.lora, Lora):
            write_base(aside, job.run.record["fingerprints"]["base"])
        (aside / "README.md").write_text(card(job.run.folder), encoding="utf-8")
        shutil.rmtree(final, ignore_errors=True)
        os.replace(aside, final)
        sync(job.run.folder)
        job.run.update(final=final_files(final))
    except Exception as error:
        if not is_disk_full(error):
            raise
        raise DiskFull(f"{final}: no space left; the checkpoints are intact; free some room and run again") from None
    tracker.keep(final)
