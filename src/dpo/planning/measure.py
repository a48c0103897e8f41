"""One step of a training run on a fake card: the engine it would choose, the peak it would reach, and of what."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from dpo.config.folder import conf_folder
from dpo.config.lora import FullTraining
from dpo.config.losses import Optimizer
from dpo.config.schema import Config
from dpo.data.pair import TokenPair
from dpo.distributed.ranks import Ranks
from dpo.engine.budget import cost
from dpo.engine.choice import Choice, choose_engine
from dpo.engine.kernels import cuda
from dpo.engine.part import Whole
from dpo.engine.score import sequence_log_probs
from dpo.engine.usable import GIGABYTE
from dpo.errors import ConfigError
from dpo.modeling.device import choose_compute
from dpo.modeling.footprint import footprint
from dpo.modeling.inspection import adapting, excluded
from dpo.modeling.policy import with_adapter
from dpo.planning.allocator import Allocator
from dpo.planning.base import fake_base, held
from dpo.planning.card import CONTEXT, Card, fake_card
from dpo.planning.trace import Trace
from dpo.training.arguments import objective
from dpo.training.reference import REFERENCE_TOKENS

PROMPT = 16
"""Tokens of the prompt of the longest pair that dataset.max_length allows: the shorter it is, the less is shared."""
UNBOUNDED = 1 << 50


@dataclass(frozen=True)
class Measured:
    """Bytes of one device. `peak` is what torch's allocator reserves at most, `parts` what lies there at the most
    that is allocated; `flops` of one micro-batch of `tokens`, forward and backward."""

    fits: bool
    peak: int
    parts: dict[str, int]
    reference_peak: int
    parameters: int
    budget: int
    activation_checkpointing: bool
    line: str
    tokens: int
    longest: int
    flops: int
    memory: int


def model_config(path: str) -> Any:
    """transformers' config of a model by its folder or hub id, without a network; ConfigError where none is here."""
    from transformers import AutoConfig

    for file in (Path(path).expanduser() / "config.json", shapes() / f"{path.replace('/', '--')}.json"):
        if file.is_file():
            values = json.loads(file.read_text(encoding="utf-8"))
            return AutoConfig.for_model(values.pop("model_type"), **values)
    known = ", ".join(sorted(file.stem.replace("--", "/") for file in shapes().glob("*.json")))
    raise ConfigError(f"model.path={path}: no config.json there to plan from\na folder with one, or one of {known}")


def shapes() -> Path:
    """The folder of configs that are shipped: shapes alone, no weights."""
    return conf_folder() / "model" / "shapes"


def measure(config: Config) -> Measured:
    """The worst micro-batch of `config` on a card of hardware.memory_gb; in a process that sees no card.

    Raises ConfigError for what cannot be planned, CannotFake where torch takes no card that is not there.
    """
    memory = config.hardware.memory_gb
    if memory is None:
        raise ConfigError("hardware.memory_gb: which card? take hardware=gpu_24gb or hardware.memory_gb=NUMBER")
    card = Card(f"{memory:g} GB", int(memory * GIGABYTE))
    try:
        return _measure(config, card, card.memory - CONTEXT)
    except torch.OutOfMemoryError:
        return _measure(config, card, UNBOUNDED)


def _measure(config: Config, card: Card, capacity: int) -> Measured:
    allocator = Allocator(capacity)
    wanted = objective(config.dpo, config.dataset.soft_labels)
    answers = config.dataset.max_length - PROMPT
    pair = TokenPair("longest", [1] * PROMPT, [1] * answers, [1] * answers)
    trace = Trace(allocator)
    with _kernel_serves(), fake_card(card, allocator), trace:
        compute = choose_compute(config.hardware.device, config.hardware.precision)
        full = isinstance(config.lora, FullTraining)
        # A load quantizes a weight at a time: all of them in 16 bits never lie there.
        trace.counting = False
        model = fake_base(
            model_config(config.model.path), config.lora.quantization, compute, config.hardware.attention, full
        )
        for tensor in held(model):
            trace.see(tensor)
        trace.counting = True
        with trace.stage("adapters"), adapting():
            model = with_adapter(model, config.lora, excluded(model, config.lora))
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.data = parameter.data.to(torch.float32)
        choice = choose_engine(model, [pair], config, compute, wanted, Ranks())
        if choice.activation_checkpointing:
            model.enable_input_require_grads()
            model.gradient_checkpointing_enable({"use_reentrant": False})
        part = _worst_part(choice, pair, config.dpo.batch_size)
        reference = {each.id: (-1.0, -1.0) for each in part}
        trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
        if config.dpo.optimizer is not Optimizer.adamw:
            raise ConfigError(f"dpo.optimizer={config.dpo.optimizer.name}: only adamw is planned so far")
        optimizer = torch.optim.AdamW(trainable, fused=True)
        model.train()
        if choice.engine.loss is None:
            raise ConfigError("hardware.engine=plain: only the packed engine is planned so far")
        with trace.stage("reference"), torch.no_grad(), torch.autocast("cuda", compute.dtype, enabled=compute.bf16):
            sequence_log_probs(model, part, REFERENCE_TOKENS)
            reference_peak = allocator.reserved
        highest, parts, flops = 0, Counter[str](), 0
        # The second step has the first one's gradients freed and its moments beside it.
        for _ in range(2):
            with trace.stage("forward"):
                with torch.autocast("cuda", compute.dtype, enabled=compute.bf16):
                    loss, _figures = choice.engine.loss(model, part, Whole(part), reference)
                trace.purpose = "backward"
                loss.backward()
                del loss
                flops = trace.flops
                trace.purpose = "optimizer"
                optimizer.step()
                optimizer.zero_grad()
                if trace.peak > highest:
                    highest, parts = trace.peak, trace.parts
        parameters = footprint(model, config.dpo.optimizer.value).total
    return Measured(
        capacity < UNBOUNDED, allocator.highest, dict(parts), reference_peak, parameters, choice.engine.budget,
        choice.activation_checkpointing, choice.line, cost(part, choice.engine.name), cost([pair], choice.engine.name),
        flops, card.memory,
    )  # fmt: skip


def _worst_part(choice: Choice, pair: TokenPair, batch_size: int) -> list[TokenPair]:
    """The first micro-batch of a step of `batch_size` times the longest pair."""
    step = [replace(pair, id=f"{i}") for i in range(batch_size)]
    return max(choice.engine.parts(step), key=lambda part: cost(part, choice.engine.name))


@contextmanager
def _kernel_serves() -> Iterator[None]:
    """The kernel for pairs is taken to agree: whether it does, only a real card can show."""
    asked = cuda.probe
    try:
        cuda.probe = lambda *_: cuda.Probe("varlen")  # type: ignore[assignment]
        yield
    finally:
        cuda.probe = asked
