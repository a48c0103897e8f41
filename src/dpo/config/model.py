"""The model group: which weights. Values live in conf/."""

from __future__ import annotations

from dataclasses import dataclass

from omegaconf import MISSING


@dataclass
class Model:
    """Which weights: a hub id, a folder with safetensors, or `embedded:NAME` for weights shipped in a package.

    `chat_template` names a file of conf/model/templates that goes before the tokenizer's own template.

    `adapter` (a folder or hub id at `adapter_revision`) is a LoRA adapter on those weights to start from: training
    continues it, and it, not the bare base, is the reference. `widen_adapter` lets lora.rank and lora.alpha differ
    from its own: the same function at the start, with room for more.
    """

    path: str = MISSING
    revision: str = MISSING
    chat_template: str | None = MISSING
    trust_remote_code: bool = MISSING
    adapter: str | None = None
    adapter_revision: str = MISSING
    widen_adapter: bool = MISSING
