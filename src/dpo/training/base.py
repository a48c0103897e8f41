"""What is settled before anything heavy is loaded: the device, weights, tokenizer, and the adapter to start from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dpo.config.hardware import Parallel
from dpo.config.lora import Lora
from dpo.config.losses import Optimizer, Rloo
from dpo.config.schema import Config
from dpo.engine.usable import cap_device
from dpo.errors import ConfigError
from dpo.modeling.adapter import Adapter, check_agrees, check_made_on, resolve_adapter
from dpo.modeling.device import Compute, card_uuid, choose_compute, describe
from dpo.modeling.facts import built, check_base, check_final, run_of
from dpo.modeling.policy import model_config, templates
from dpo.modeling.positions import positions, steady
from dpo.modeling.stored import check_stored
from dpo.modeling.tokenizer import load_tokenizer, tokenizer_fingerprint
from dpo.modeling.weights import Weights, resolve
from dpo.records.date import date_of_begin
from dpo.records.parents import distinct, parents_by
from dpo.training.job import Job
from dpo.training.rlhf.parent import find_reward


@dataclass(frozen=True)
class Base:
    """The resolved weights, the adapter to start from if any, their tokenizer, and what to compute with."""

    weights: Weights
    adapter: Adapter | None
    tokenizer: Any
    compute: Compute
    positions: int | None
    """How long a sequence the model was made for; None where nothing bounds it."""
    steady: int | None
    """Up to how long a position hangs on no other sequence; None where it never does."""


def find_base(job: Job) -> Base:
    """Resolve device, weights and tokenizer; nothing heavy is loaded yet, so faults show early."""
    config = job.config
    with job.ledger.phase("load"), job.ranks.in_turn():
        compute = choose_compute(config.hardware.device, config.hardware.precision)
        weights = resolve(config.model.path, config.model.revision, config.model.trust_remote_code)
        # A template that prints the date renders the same when the run is continued or read.
        date = job.run.record.setdefault("date", date_of_begin(job.run.record))
        tokenizer = load_tokenizer(weights.folder, config.model.chat_template, templates(), weights.remote_code, date)
        made = model_config(weights)
        check_stored(weights, config.lora)
        job.run.record["parents"] = []
        adapter = find_adapter(job, weights)
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
    if isinstance(config.dpo, Rloo):
        find_reward(job)
    job.run.record["built"] = built(config)
    job.run.record["fingerprints"] |= {"device": compute.device, "precision": str(compute.dtype)[6:]}
    # Another number of ranks gives the same step up to rounding only, and other dropout masks.
    job.run.record["fingerprints"]["processes"] = str(job.ranks.size)
    if job.ranks.size > 1 and config.hardware.parallel is not Parallel.ddp:
        job.run.record["fingerprints"]["parallel"] = config.hardware.parallel.name
    job.run.update(device=describe(compute), processes=job.ranks.size, revision=weights.revision)
    return Base(weights, adapter, tokenizer, compute, positions(made), steady(made))


def check_device(config: Config) -> None:
    """Raise ConfigError for a device that is not here, and for what only a GPU can do."""
    compute = choose_compute(config.hardware.device, config.hardware.precision)
    if compute.device == "cpu" and config.dpo.optimizer is Optimizer.paged_adamw_8bit:
        raise ConfigError("dpo.optimizer=paged_adamw_8bit: needs a CUDA GPU; use dpo.optimizer=adamw on a CPU")


def find_adapter(job: Job, base: Weights) -> Adapter | None:
    """The adapter this run starts from, checked; None for a fresh one.

    Raises CheckpointError where it is another run's, and that run's base or final weights are not what they were.
    """
    model, lora = job.config.model, job.config.lora
    if model.adapter is None:
        return None
    assert isinstance(lora, Lora)
    adapter = resolve_adapter(model.adapter, model.adapter_revision)
    check_agrees(adapter, lora, model.widen_adapter)
    if (run := run_of(adapter.folder)) is not None:
        check_final(run)
        check_base(run, base)
        job.run.record["parents"] = distinct([*job.run.record["parents"], *parents_by("adapter", run)])
    else:
        check_made_on(adapter, base.fingerprint)
    job.run.record["fingerprints"]["adapter"] = adapter.fingerprint
    job.run.record["adapter_revision"] = adapter.revision
    made_for = adapter.settings.get("base_model_name_or_path")
    note = f"; it was made for {made_for}" if made_for != model.path else ""
    job.say(f"starting from the adapter {model.adapter}, which is the reference as well{note}")
    return adapter
