"""How pairs become batches: the packed engine or TRL's own forward, and micro-batches that the memory can hold."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import torch

from dpo.config.hardware import Checkpointing, Parallel
from dpo.config.hardware import Engine as EngineOption
from dpo.data.pair import TokenPair
from dpo.engine.attention import describe_kernel
from dpo.engine.budget import cost, split
from dpo.engine.kto_divergence import Divergence
from dpo.engine.lean_linear import keep_dequantized
from dpo.engine.memory import MemoryPlan, Need, NeedOf, free_memory, plan
from dpo.engine.micro_batch import PartLoss, own_loss, packed_figures, padded_figures
from dpo.engine.packed_forward import install
from dpo.engine.support import unwrapped
from dpo.engine.usable import held_bytes, training_bytes, usable
from dpo.engine.workers import Workers, most_at_once
from dpo.losses.objective import Objective
from dpo.losses.table import LOSSES

if TYPE_CHECKING:
    from dpo.config.schema import Config
    from dpo.modeling.device import Compute

T = TypeVar("T")


class Processes(Protocol):
    """Those of one run, seen from one of them."""

    @property
    def size(self) -> int:
        """How many there are."""

    @property
    def local_size(self) -> int:
        """How many of them on this machine."""

    def gather(self, value: T) -> list[T]:
        """The value of each."""


@dataclass(frozen=True)
class Engine:
    """How pairs become a loss: `split` gives the micro-batches of a step, `loss` what is minimized of each, `workers`
    computes them.

    `split(pairs, budget, at_once)` returns at least one part; a part of one pair may exceed the budget.
    """

    loss: PartLoss | None
    """None: TRL's own, of the trainer that holds this engine."""
    split: Callable[[list[TokenPair], int, int], list[list[TokenPair]]]
    budget: int
    workers: Workers = field(default_factory=Workers)
    name: str = "packed"
    divergence: Divergence | None = None
    """How the estimate that some losses are measured from is made, over a whole step."""
    coupled: bool = False
    """Whether what a pair counts for hangs on the others in its part."""

    def parts(self, pairs: list[TokenPair]) -> list[list[TokenPair]]:
        """The micro-batches of `pairs`."""
        return self.split(pairs, self.budget, self.workers.count)

    def held(self, pairs: list[TokenPair]) -> int:
        """Most tokens in memory at one time while `pairs` are computed; 0 without pairs."""
        costs = [cost(part, self.name) for part in self.parts(pairs)] if pairs else []
        beside = self.workers.count
        return max((sum(costs[i : i + beside]) for i in range(0, len(costs), beside)), default=0)

    def smaller(self) -> list[Engine]:
        """Engines for less memory, the nearest first: half the budget and so on, then the same with half as many
        micro-batches at once."""
        found = []
        budget, at_once = self.budget // 2, self.workers.count
        while at_once >= 1:
            workers = self.workers if at_once == self.workers.count else Workers.of(at_once)
            while budget >= 1:
                found.append(replace(self, budget=budget, workers=workers))
                budget //= 2
            budget, at_once = self.budget, at_once // 2
        return found


@dataclass(frozen=True)
class Choice:
    """An engine, and what its memory plan asks of the trainer."""

    engine: Engine
    activation_checkpointing: bool
    line: str
    """Which engine and why, with the plan."""


def choose_engine(
    model: Any,
    pairs: Sequence[TokenPair],
    config: Config,
    compute: Compute,
    objective: Objective,
    processes: Processes,
    split_before: tuple[int | None, int | None] = (None, None),
    measure: NeedOf | None = None,
) -> Choice:
    """How `model` computes steps of such `pairs`: packed where its family and the losses allow, else by TRL.

    A continued run keeps the split (token budget, micro-batches at once) it had, `split_before`: another split of a
    step would change its rounding. A packed model has its forward replaced. `measure` says what a step takes, on one
    process for all.
    """
    hardware, losses, batch_size = config.hardware, objective.losses, config.dpo.batch_size
    name, why = "plain", ""
    if hardware.engine is EngineOption.packed:
        unknown = sorted(set(losses) - LOSSES.keys())
        refused = f"it has no loss {unknown[0]}" if unknown else install(model)
        name, why = ("packed", "") if refused is None else ("plain", f" because {refused}")
    coupled = any(LOSSES[loss].whole_step for loss in losses if loss in LOSSES)
    together = batch_size if coupled else 1
    asked = hardware.activation_checkpointing
    budget_before, at_once_before = split_before
    at_once = 1
    if name == "packed" and not coupled and asked is not Checkpointing.on and processes.size == 1:
        at_once = at_once_before or most_at_once(model, compute.device, batch_size)
    free = usable(
        free_memory(torch.device(compute.device)),
        hardware.memory_gb,
        held_bytes(model),
        # Processes of one machine without devices of their own live in the same memory.
        1 if compute.device == "cuda" else processes.local_size,
    )
    whole = hardware.parallel in (Parallel.none, Parallel.ddp)
    # Of weights that are spread, each process trains its part.
    free = max(0, free - training_bytes(model, config.dpo.optimizer.value) // (1 if whole else processes.size))
    dequantized = keep_dequantized(model, compute.dtype, free) if name == "packed" and whole else 0
    free -= dequantized

    def need(checkpointing: bool, longest: int) -> Need | None:
        if measure is None:
            return None
        asks: Any = replace(config, hardware=replace(hardware, engine=EngineOption(name)))
        return measure(asks, unwrapped(model).config, compute, dequantized > 0, checkpointing, longest)

    def planned_with(at_once: int) -> MemoryPlan:
        return plan(
            model,
            pairs,
            engine=name,
            dtype=compute.dtype,
            free=free // at_once,
            # Who asks for less than before, after an out of memory say, gets it.
            token_budget=min(filter(None, (budget_before, hardware.token_budget)), default=None),
            checkpointing=None if asked is Checkpointing.auto else asked is Checkpointing.on,
            together=together,
            need=need,
        )

    planned = planned_with(at_once)
    if planned.activation_checkpointing and at_once > 1:
        # Computing a forward twice costs more than a second micro-batch beside it gains.
        at_once, planned = 1, planned_with(1)
    agreed = processes.gather((planned.token_budget, planned.activation_checkpointing))
    budget, activation_checkpointing = min(b for b, _ in agreed), any(c for _, c in agreed)

    def parts(pairs: list[TokenPair], budget: int, at_once: int) -> list[list[TokenPair]]:
        if coupled:
            return [pairs[i : i + together] for i in range(0, len(pairs), together)]
        return split(pairs, budget, name, at_once)

    forward = packed_figures if name == "packed" else padded_figures
    trls = name == "plain" and objective.entry.in_dpo_trainer
    divergence = Divergence(forward, config.dataset.max_length) if objective.entry.examples else None
    loss = None if trls else own_loss(objective, forward)
    engine = Engine(loss, parts, budget, Workers.of(at_once), name, divergence, coupled)
    unsplit = f", steps of {together} pairs in one part" if coupled else ""
    beside = f", {at_once} micro-batches at once" if at_once > 1 else ""
    weights = f", 4-bit weights kept dequantized too ({dequantized / 2**30:.1f} GiB)" if dequantized else ""
    kernel = f", attention {describe_kernel(model, compute.dtype)}" if name == "packed" else ""
    line = f"{name} engine{why}, {planned.line}{unsplit}{beside}{weights}{kernel}"
    return Choice(engine, activation_checkpointing, line)
