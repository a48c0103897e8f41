"""What is settled before anything heavy is loaded: whether this device can do it, and the adapter to start from."""

from __future__ import annotations

from dpo.config.lora import Lora
from dpo.config.losses import Optimizer
from dpo.config.schema import Config
from dpo.errors import ConfigError
from dpo.modeling.adapter import Adapter, check_agrees, keep_copy, resolve_adapter
from dpo.modeling.device import Compute
from dpo.modeling.policy import REFERENCE
from dpo.training.job import Job


def check_device(config: Config, compute: Compute) -> None:
    """Raise ConfigError for what only a GPU can do."""
    if compute.device == "cpu" and config.dpo.optimizer is Optimizer.paged_adamw_8bit:
        raise ConfigError("dpo.optimizer=paged_adamw_8bit: needs a CUDA GPU; use dpo.optimizer=adamw on a CPU")


def find_adapter(job: Job) -> Adapter | None:
    """The adapter this run starts from, checked and kept in the run directory; None for a fresh one."""
    model, lora = job.config.model, job.config.lora
    if model.adapter is None:
        return None
    assert isinstance(lora, Lora)
    adapter = resolve_adapter(model.adapter, model.adapter_revision)
    check_agrees(adapter, lora, model.widen_adapter)
    keep_copy(adapter, job.run.folder / REFERENCE)
    job.run.record["fingerprints"]["adapter"] = adapter.fingerprint
    job.run.record["adapter_revision"] = adapter.revision
    made_for = adapter.settings.get("base_model_name_or_path")
    note = f"; it was made for {made_for}" if made_for != model.path else ""
    job.say(f"starting from the adapter {model.adapter}, which is the reference as well{note}")
    return adapter
