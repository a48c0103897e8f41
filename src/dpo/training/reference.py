"""The reference's log-probs of every pair a run reads, and the proof that the policy begins as the reference."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Sequence
from typing import overload

import torch

from dpo.caches.folder import cache_folder
from dpo.caches.keys import context_key
from dpo.caches.reference import ReferenceCache
from dpo.config.losses import Rloo
from dpo.config.parse import plain
from dpo.data.pair import TokenPair
from dpo.data.prepare import Prepared
from dpo.data.token_file import Selection
from dpo.engine.attention import path
from dpo.engine.kto_divergence import mismatch
from dpo.engine.log_probs import sequence_log_probs
from dpo.engine.packed_forward import installed
from dpo.losses.table import LOSSES
from dpo.modeling.device import Compute, kernels
from dpo.records.progress import StageProgress
from dpo.training import trainer as trainers
from dpo.training.base import Base
from dpo.training.checks.start_identity import check_identity, score_start
from dpo.training.job import Job
from dpo.training.order import epoch_order

IDENTITY_PAIRS = 32
# Fixed, so that a reference log-prob does not depend on how much memory was free when it was computed.
REFERENCE_TOKENS = 4096


class Mismatched(Sequence[TokenPair]):
    """Mismatched pairs made as they are asked for: prompt and completions of which pairs, by index."""

    def __init__(self, pairs: Sequence[TokenPair], of: Sequence[tuple[int, int]], max_length: int) -> None:
        self._pairs, self._of, self._max_length = pairs, of, max_length

    def __len__(self) -> int:
        return len(self._of)

    @overload
    def __getitem__(self, index: int) -> TokenPair: ...
    @overload
    def __getitem__(self, index: slice) -> list[TokenPair]: ...
    def __getitem__(self, index: int | slice) -> TokenPair | list[TokenPair]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        prompt, completions = self._of[index]
        return mismatch(self._pairs[prompt], self._pairs[completions], self._max_length)


def compared_pairs(job: Job, data: Prepared, needed: Sequence[TokenPair]) -> Sequence[TokenPair]:
    """What the loss asks the reference for: the pairs a run reads, and where it is measured from a divergence those
    that each of its steps, and a look at the dev pairs, is estimated over."""
    config = job.config
    if isinstance(config.dpo, Rloo):
        # Of what it draws the reference is asked in each step; these are for the proof that it begins as the reference.
        return needed[-IDENTITY_PAIRS:]
    if not any(LOSSES[name].examples for name in config.dpo.loss if name in LOSSES):
        return needed
    size, count, dpo = config.dpo.batch_size, len(data.train), config.dpo
    each = math.ceil(count / size)
    steps = dpo.max_steps if dpo.max_steps is not None else math.ceil(dpo.epochs * each)
    found: dict[tuple[int, int], None] = {}
    order: list[int] = []
    for step in range(steps):
        if step % each == 0:
            order = epoch_order(count, config.seed, step // each)
        start = step % each * size
        found |= dict.fromkeys(ring(order[start : start + size]))
    longest = config.dataset.max_length
    train = Mismatched(data.train, list(found), longest)
    dev = Mismatched(data.dev, ring(range(len(data.dev))[: dpo.eval_limit]), longest)
    return Selection(*((part, range(len(part))) for part in (needed, train, dev)))


def ring(step: Sequence[int]) -> list[tuple[int, int]]:
    """Which prompt meets whose completions, as `divergence.mismatched` has it."""
    return list(zip(step, [*step[-1:], *step[:-1]], strict=True))


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

    work, engine, fresh = trainer.work, trainer.engine.name, base.adapter is None and hasattr(model, "disable_adapter")
    assert work is not None
    spent = 0

    def operations(pair: TokenPair) -> int:
        return work.forward(work.of_pairs([pair], engine), adapters=not fresh)

    def compute(part: list[TokenPair]) -> list[tuple[float, float]]:
        nonlocal spent
        job.interrupts.check()
        spent += sum(map(operations, part))
        return sequence_log_probs(model, part, REFERENCE_TOKENS, ld_alpha=trainer.ld_alpha)

    cache = ReferenceCache(cache_folder("reference") / "log_probs.sqlite", say=job.say)
    off = model.disable_adapter() if fresh else contextlib.nullcontext()
    show = StageProgress("reference log-probs", len(pairs))
    with job.ledger.phase("reference"), off, trainer.accelerator.autocast(), show:
        trainer.reference = cache.fill(pairs, context, compute, progress=show.reach)
    # What another rank computed is a hit here.
    hits, misses = cache.counters.hits, sum(job.ranks.gather(cache.counters.misses))
    hits -= misses - cache.counters.misses
    spent = sum(job.ranks.gather(spent))
    job.ledger.count("reference", pairs=len(pairs), hits=max(0, hits), misses=misses, flops=spent)
    # What computing every pair took, whoever did it.
    job.ledger.set(
        "reference",
        pair_seconds=cache.counters.seconds / job.ranks.size,
        pair_cpu_seconds=cache.counters.cpu_seconds / job.ranks.size,
        pair_flops=sum(map(operations, pairs)),
    )
    job.say(f"reference: {max(0, hits)} pairs from the cache, {misses} computed")


def check_start(job: Job, trainer: trainers.Trainer, pairs: Sequence[TokenPair], compute: Compute) -> None:
    """Before step 1 the policy is the reference: the log-ratios of the last `IDENTITY_PAIRS` pairs are 0."""
    pairs = list(pairs[-IDENTITY_PAIRS:])
    with trainer.accelerator.autocast():
        start = score_start(trainer.model, pairs, compute.dtype, REFERENCE_TOKENS, trainer.ld_alpha)
    worst, bound = check_identity(start, trainer.reference)
    job.run.update(reference_identity=worst, reference_identity_bound=bound)
    job.say(f"reference identity holds: the largest log-ratio before step 1 is {worst:.1g} per token")
