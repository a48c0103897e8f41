"""What each key of a run decides. The only place that says which keys make another run, and which do not.

Hardware never changes the science: what only says how, when or under which name something is computed must not part a
run from its checkpoints. A key that stands nowhere here counts as `what`; a test finds it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from enum import Enum
from typing import Any

Row = dict[str, Any]


class Role(Enum):
    """What a key decides. Only `what` makes another run; a change of `how` and `when` is said when a run continues."""

    what = "what is computed"
    how = "how it is computed, up to rounding"
    when = "when something is logged, measured or kept"
    start = "this start alone: its name, its price, where its figures go"


_KEYS = {
    Role.what: """
        seed
        model.path model.revision model.chat_template model.trust_remote_code
        model.adapter model.adapter_revision model.widen_adapter
        dataset.source dataset.path dataset.dev_path dataset.test_path dataset.hub dataset.revision dataset.subset
        dataset.subreddit dataset.min_ratio dataset.pairs_per_post dataset.columns dataset.label_a dataset.label_b
        dataset.max_length dataset.min_prompt_tokens dataset.keep dataset.limit dataset.on_bad dataset.soft_labels
        dataset.count_tool_tokens dataset.id dataset.config dataset.split dataset.dev_split dataset.test_split
        dataset.parts dataset.weights dataset.overrides
        dataset.dev_fraction dataset.test_fraction dataset.chat_template_kwargs
        lora.quantization lora.rank lora.alpha lora.dropout lora.target_modules lora.exclude_modules lora.rslora
        lora.dora
        dpo.loss dpo.loss_weights dpo.beta dpo.label_smoothing dpo.discopop_tau dpo.f_divergence_type
        dpo.gamma_ratio dpo.cpo_alpha dpo.desirable_weight dpo.undesirable_weight
        dpo.f_alpha_divergence_coef dpo.ld_alpha dpo.use_weighting dpo.learning_rate dpo.optimizer dpo.weight_decay
        dpo.reward dpo.samples dpo.max_new_tokens dpo.cut_penalty
        dpo.max_grad_norm dpo.scheduler dpo.warmup_ratio dpo.epochs dpo.max_steps dpo.batch_size
        dpo.trainer.lr_scheduler_kwargs dpo.trainer.adam_beta1 dpo.trainer.adam_beta2
        dpo.trainer.adam_epsilon dpo.trainer.neftune_noise_alpha
        dpo.trainer.router_aux_loss_coef""",
    Role.how: """
        hardware.device hardware.precision hardware.engine hardware.attention hardware.token_budget
        hardware.activation_checkpointing hardware.memory_gb hardware.parallel hardware.processes
        dpo.trainer.tf32 dpo.trainer.activation_checkpointing_kwargs dpo.trainer.activation_offloading
        dpo.trainer.torch_compile dpo.trainer.torch_compile_backend dpo.trainer.torch_compile_mode
        dpo.trainer.torch_empty_cache_steps dpo.trainer.full_determinism dpo.trainer.dataloader_num_workers
        dpo.trainer.dataloader_pin_memory dpo.trainer.dataloader_persistent_workers
        dpo.trainer.dataloader_prefetch_factor dpo.trainer.dataloader_multiprocessing_context
        dpo.trainer.ddp_bucket_cap_mb dpo.trainer.ddp_broadcast_buffers dpo.trainer.ddp_static_graph
        dpo.trainer.ddp_timeout""",
    Role.when: """
        dataset.judges dataset.max_new_tokens
        dpo.log_every dpo.eval_every dpo.eval_limit dpo.save_every dpo.keep_checkpoints
        dpo.trainer.log_level dpo.trainer.log_level_replica dpo.trainer.log_on_each_node""",
    Role.start: "name resume resume_anyway tracking sweep hardware.hourly_rate",
}
ROLES: dict[str, Role] = {key: role for role, keys in _KEYS.items() for key in keys.split()}
"""Dotted key -> role. An entry stands for all that lies below it."""


def role(key: str) -> Role:
    """The role of a dotted key: its own or that of what it lies in."""
    while key:
        if key in ROLES:
            return ROLES[key]
        key = key.rpartition(".")[0]
    return Role.what


def flat(node: Any, prefix: str = "") -> Row:
    """Nested mappings to dotted keys; lists and empty mappings are values."""
    if not isinstance(node, dict) or not node:
        return {prefix: node}
    found: Row = {}
    for key, value in node.items():
        found |= flat(value, f"{prefix}.{key}" if prefix else str(key))
    return found


def settings(config: Row) -> Row:
    """The keys of a plain config that a continued run is compared by, dotted; an empty mapping says nothing."""
    return {key: value for key, value in flat(config).items() if value != {} and role(key) is not Role.start}


def identity(config: Row) -> str:
    """Ten hex digits over all of a plain config that decides what is computed."""
    shaping = {key: value for key, value in settings(config).items() if role(key) is Role.what}
    return hashlib.sha256(json.dumps(shaping, sort_keys=True).encode()).hexdigest()[:10]


def changes(before: Mapping[str, Any], now: Mapping[str, Any], *roles: Role) -> list[str]:
    """`dpo.save_every=5 (was 50)` for each key of these roles that differs between two `settings`."""
    differing = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    return [f"{key}={_word(now, key)} (was {_word(before, key)})" for key in differing if role(key) in roles]


def _word(settings: Mapping[str, Any], key: str) -> str:
    value = settings.get(key)
    return value if isinstance(value, str) else json.dumps(value)
