"""A training command on a card that is not here: what its run would choose, take, do and cost."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from dpo.config.folder import conf_folder
from dpo.config.hardware import Checkpointing, Device
from dpo.config.losses import REFERENCE_FREE
from dpo.config.schema import Config
from dpo.data.pair import TokenPair
from dpo.engine.budget import cost
from dpo.engine.choice import Engine
from dpo.engine.kernels import cuda
from dpo.engine.usable import GIGABYTE
from dpo.engine.work import Work, work_of
from dpo.errors import ConfigError
from dpo.modeling.device import choose_compute
from dpo.modeling.embedded import converted_folder
from dpo.modeling.footprint import footprint
from dpo.planning.allocator import Allocator, Host
from dpo.planning.card import CONTEXT, Card, fake_card, fake_host
from dpo.planning.lengths import Lengths, of_length, steps_of
from dpo.planning.needs import need_of
from dpo.planning.rehearsal import Rehearsal, Stage
from dpo.planning.trace import Trace
from dpo.training.reference import REFERENCE_TOKENS

UNBOUNDED = 1 << 50
LOOKED_AT = 50_000
"""Steps of a run that are split to find its largest micro-batch."""


@dataclass(frozen=True)
class Amounts:
    """What a run does. `tokens`: that its engine lays out, training alone; operations of training, of the reference
    pass, of its looks at the dev pairs."""

    steps: int
    pairs: int
    tokens: int
    train_flops: int
    reference_flops: int
    evaluation_flops: int
    trl_flops: int
    """Of TRL's own steps at its defaults: padded, checkpointed, with the reference in each."""

    @property
    def flops(self) -> int:
        """All of them."""
        return self.train_flops + self.reference_flops + self.evaluation_flops


@dataclass(frozen=True)
class Measured:
    """Bytes of one device: `peak` is what torch's allocator reserves at most, `parts` what lies there at the most that
    is allocated, `reference_peak` and `evaluation_peak` the most of these stages. `at_one_pair` is what the longest
    pair alone takes, with checkpointing unless that is off. `capacity`: what a process can have of the device."""

    fits: bool
    at_one_pair: int
    capacity: int
    memory: int
    peak: int
    parts: dict[str, int]
    reference_peak: int
    evaluation_peak: int
    parameters: int
    engine: str
    budget: int
    activation_checkpointing: bool
    line: str
    tokens: int
    longest: int
    known: str
    amounts: Amounts


def model_config(path: str) -> Any:
    """transformers' config of a model by its folder or hub id, without a network; ConfigError where none is here."""
    from transformers import AutoConfig

    folder = converted_folder(path.removeprefix("embedded:")) if path.startswith("embedded:") else None
    name = path.replace("/", "--").replace(":", "--")
    for file in ((folder or Path(path).expanduser()) / "config.json", shapes() / f"{name}.json"):
        if file.is_file():
            values = json.loads(file.read_text(encoding="utf-8"))
            return AutoConfig.for_model(values.pop("model_type"), **values)
    known = ", ".join(sorted(file.stem.replace("--", "/") for file in shapes().glob("*.json")))
    raise ConfigError(f"model.path={path}: no config.json there to plan from\na folder with one, or one of {known}")


def shapes() -> Path:
    """The folder of configs that are shipped: shapes alone, no weights."""
    return conf_folder() / "model" / "shapes"


def measure(config: Config, lengths: Lengths) -> Measured:
    """What `config` takes on a card of hardware.memory_gb, or on a CPU; in a process that sees no card.

    Raises ConfigError for what cannot be planned, CannotFake where torch takes no card that is not there.
    """
    memory = config.hardware.memory_gb
    if config.hardware.device is Device.cpu:
        return _measure(config, lengths, None, Host())
    if config.hardware.device is Device.mps:
        raise ConfigError("hardware.device=mps: only CUDA cards and CPUs are planned for")
    if memory is None:
        raise ConfigError("hardware.memory_gb: which card? take hardware=gpu_24gb or hardware.memory_gb=NUMBER")
    card = Card(f"{memory:g} GB", int(memory * GIGABYTE))
    try:
        return _measure(config, lengths, card, Allocator(card.memory - CONTEXT))
    except torch.OutOfMemoryError:
        return _measure(config, lengths, card, Allocator(UNBOUNDED))


@contextmanager
def device(card: Card | None, allocator: Allocator | Host) -> Iterator[None]:
    """Inside, tensors have no contents; on a card where one is given."""
    if card is None:
        with fake_host():
            yield
        return
    assert isinstance(allocator, Allocator)
    with _kernel_serves(), fake_card(card, allocator):
        yield


def _measure(config: Config, lengths: Lengths, card: Card | None, allocator: Allocator | Host) -> Measured:
    trace = Trace(allocator, "cpu" if card is None else "cuda")
    size = config.dpo.batch_size
    longest = sorted(lengths.train, key=lambda pair: -cost([pair], "packed"))[: max(8, size)]
    pairs = [of_length(f"longest:{i}", pair) for i, pair in enumerate(longest)]
    with device(card, allocator), trace:
        compute = choose_compute(config.hardware.device, config.hardware.precision)
        made = Rehearsal(config, model_config(config.model.path), compute, pairs, trace, need_of, probe=False)
        engine = made.engine
        part, split = _worst_part(config, lengths, engine)
        free = REFERENCE_FREE & set(config.dpo.loss)
        reference = made.reference(_group(pairs, engine)) if not free else _nothing(trace)
        evaluation = made.evaluation(part[: max(1, len(part))])
        # The second step has the first one's moments beside it, and gradients of a micro-batch before it.
        step = made.train([part, part] if card is not None else [part[:1], part], gradients=split)[-1]
        work = work_of(made.trainer.model, made.checkpointing)
        bounded = card is None or (isinstance(allocator, Allocator) and allocator.capacity < UNBOUNDED)
        one = _one_pair(config, made, step, pairs, fits=bounded)
        parameters = footprint(made.trainer.model, config.dpo.optimizer.value).total
    stages = (reference, evaluation, step)
    highest = max(stages, key=lambda stage: stage.peak)
    return Measured(
        fits=bounded, at_one_pair=one, memory=0 if card is None else card.memory,
        capacity=0 if card is None else card.memory - CONTEXT, peak=allocator.highest,
        parts={name: size for name, size in highest.parts.items() if size > 0}, reference_peak=reference.peak,
        evaluation_peak=evaluation.peak, parameters=parameters, engine=engine.name, budget=engine.budget,
        activation_checkpointing=made.checkpointing, line=made.said[1], tokens=made.tokens(part),
        longest=made.tokens(pairs[:1]), known=lengths.known,
        amounts=amounts(config, lengths, engine, work, bool(free)),
    )  # fmt: skip


def _one_pair(config: Config, made: Rehearsal, step: Stage, pairs: Sequence[TokenPair], fits: bool) -> int:
    """Bytes at the least that a run can be split into; with checkpointing where it does not fit without."""
    hardware = config.hardware
    # What fits as it was planned is not measured another way.
    on = made.checkpointing or (not fits and hardware.activation_checkpointing is Checkpointing.auto)
    asks = replace(config, hardware=replace(hardware, engine=type(hardware.engine)(made.engine.name)))
    longest = max(len(p.prompt_ids) + max(len(p.chosen_ids), len(p.rejected_ids)) for p in pairs)
    need = need_of(asks, made.shape, made.compute, made.kept, on, longest)
    together = len(pairs) if made.engine.divergence is not None else 1
    at_least = 0.0 if need is None else need.fixed + need.per_token * made.tokens(pairs[:together])
    return int(step.held + at_least)


def _worst_part(config: Config, lengths: Lengths, engine: Engine) -> tuple[list[TokenPair], bool]:
    """The largest micro-batch of the run, and whether its step has others before it."""
    worst, size, split = [of_length("worst:0", lengths.train[0])], 0, False
    for number, step in enumerate(lengths.steps(config)):
        if number == LOOKED_AT:
            break
        parts = engine.parts(step)
        for part in parts:
            if (found := cost(part, engine.name)) > size:
                worst, size = part, found
        split = split or len(parts) > 1
    return [of_length(f"worst:{i}", pair) for i, pair in enumerate(worst)], split


def _group(pairs: Sequence[TokenPair], engine: Engine) -> list[TokenPair]:
    """As many of the longest as the reference pass computes at one time."""
    found = list(pairs[:1])
    for pair in pairs[1:]:
        if cost([*found, pair], engine.name) > REFERENCE_TOKENS:
            break
        found.append(pair)
    return found


def _nothing(trace: Trace) -> Stage:
    return Stage(trace.allocator.allocated, trace.allocator.allocated, trace.live.copy(), 0)


def amounts(config: Config, lengths: Lengths, engine: Engine, work: Work, free: bool) -> Amounts:
    """Counted over every pair the run reads; `free`: without a reference."""
    dpo = config.dpo
    steps = steps_of(config, lengths.whole)
    tokens = pairs = flops = looked = trl = 0
    checkpointed = replace(work, checkpointing=True)
    for step in lengths.steps(config):
        for part in engine.parts(step):
            tokens += cost(part, engine.name)
            flops += work.step(work.of_pairs(part, engine.name))
        padded = work.of_pairs(step, "plain")
        trl += checkpointed.step(padded) + (0 if free else work.forward(padded, adapters=False))
        pairs += len(step)
        looked += 1
    # One step stands for all of them where the data is not here.
    times = steps / looked
    read = min(lengths.whole, round(pairs * times))
    base = work.forward(work.of_pairs(lengths.train, engine.name), adapters=False) / len(lengths.train)
    looks = work.forward(work.of_pairs(lengths.dev, engine.name)) if lengths.dev else 0
    often = 2 + (steps - 1) // dpo.eval_every if dpo.eval_every else 2
    reference = 0 if free else int(base * (read + len(lengths.dev)))
    return Amounts(
        steps, round(pairs * times), round(tokens * times), round(flops * times), reference, math.ceil(looks * often),
        round(trl * times),
    )  # fmt: skip


@contextmanager
def _kernel_serves() -> Iterator[None]:
    """The kernel for pairs is taken to agree: whether it does, only a real card can show."""
    asked = cuda.probe
    try:
        cuda.probe = lambda *_: cuda.Probe("varlen")  # type: ignore[assignment]
        yield
    finally:
        cuda.probe = asked
