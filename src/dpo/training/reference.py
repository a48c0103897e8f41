"""The reference's log-probs of every pair a run reads, and the proof that the policy begins as the reference."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence

import torch

from dpo.caches.folder import cache_folder
from dpo.caches.keys import context_key
from dpo.caches.reference import ReferenceCache
from dpo.config.parse import plain
from dpo.data.pair import TokenPair
from dpo.engine.attention import path
from dpo.engine.install import installed
from dpo.engine.score import sequence_log_probs
from dpo.modeling.device import Compute, kernels
from dpo.records.progress import StageProgress
from dpo.training import trainer as trainers
from dpo.training.base import Base
from dpo.training.job import Job
from dpo.training.start_identity import check_identity, score_start

IDENTITY_PAIRS = 32
# Fixed, so that a reference log-prob does not depend on how much memory was free when it was computed.
REFERENCE_TOKENS = 4096


def add_reference(job: Job, base: Base, trainer: trainers.Trainer, pairs: Sequence[TokenPair]) -> None:
    """Give the trainer the reference's log-probs of every pair it will read.

    The reference is the starting policy: adapters off; or, as this comes before a checkpoint is loaded, the model as
    it stands for full fine-tuning and when the run continues an adapter. What any run on this machine has computed
    for the same weights and tokens is taken from the cache.
    """
    config, model = job.config, trainer.model
    computes = path(model, base.compute.dtype) if installed(model) else "plain"
    # What trains whole is held in fp32, a frozen base in the compute type: the same weights, rounded differently.
    held = next(parameter.dtype for name, parameter in model.named_parameters() if "lora_" not in name)
    context = context_key(
        base=base.weights.fingerprint,
        quantization=json.dumps(plain(config.lora.quantization), sort_keys=True),
        adapter=base.adapter.fingerprint if base.adapter is not None else "none",
        precision=f"{base.compute.dtype} on {held} {torch.get_float32_matmul_precision()}",
        device=kernels(base.compute.device),
        attention=f"{computes}-{config.hardware.attention}",
        ld_alpha=trainer.ld_alpha,
    )

    def compute(part: list[TokenPair]) -> list[tuple[float, float]]:
        job.interrupts.check()
        return sequence_log_probs(model, part, REFERENCE_TOKENS, ld_alpha=trainer.ld_alpha)

    cache = ReferenceCache(cache_folder("reference") / "log_probs.sqlite", say=job.say)
    fresh = base.adapter is None and hasattr(model, "disable_adapter")
    off = model.disable_adapter() if fresh else contextlib.nullcontext()
    show = StageProgress("reference log-probs", len(pairs))
    with job.ledger.phase("reference"), off, trainer.accelerator.autocast(), show:
        trainer.reference = cache.fill(pairs, context, compute, progress=show.reach)
    # What another rank computed is a hit here.
    hits, misses = cache.counters.hits, sum(job.ranks.gather(cache.counters.misses))
    hits -= misses - cache.counters.misses
    job.ledger.count("reference", pairs=len(pairs), hits=max(0, hits), misses=misses)
    job.ledger.set("reference", pair_seconds=cache.counters.seconds / job.ranks.size)
    job.say(f"reference: {max(0, hits)} pairs from the cache, {misses} computed")


def check_start(job: Job, trainer: trainers.Trainer, pairs: Sequence[TokenPair], compute: Compute) -> None:
    """Before step 1 the policy is the reference: the log-ratios of the last `IDENTITY_PAIRS` pairs are 0."""
    pairs = list(pairs[-IDENTITY_PAIRS:])
    with trainer.accelerator.autocast():
        start = score_start(trainer.model, pairs, compute.dtype, REFERENCE_TOKENS, trainer.ld_alpha)
    worst, bound = check_identity(start, trainer.reference)
    job.run.update(reference_identity=worst, reference_identity_bound=bound)
    job.say(f"reference identity holds: the largest log-ratio before step 1 is {worst:.1g} per token")
