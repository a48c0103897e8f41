"""One optimizer step: its parts, their gradients, and the same step again in smaller parts when memory ran out.

A step is split into micro-batches under a token budget, each weighted by its pairs, so the step does not depend on the
split; nothing that is not finite gets stepped on.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from dpo.data.pair import TokenPair
from dpo.engine.kto_divergence import examples, mismatched
from dpo.engine.micro_batch import Part, PartLoss, Reference, Whole
from dpo.engine.work import Work
from dpo.errors import Diverged, OutOfMemory, is_out_of_memory
from dpo.training.checks.guards import check_finite, check_gradients_arrive
from dpo.training.resumable import ResumableTrainer

OUT_OF_MEMORY = "out of memory"


class SteppingTrainer(ResumableTrainer):
    """The Trainer's step replaced by ours: the optimizer, clipping and schedule around it are the Trainer's own."""

    reference: Reference
    trls_loss: PartLoss
    """What computes where the engine has no loss of its own."""
    check_gradients_at: int
    """The step after which each trainable tensor must have a gradient."""
    work: Work | None
    """Counts operations, which `on_work` is told of as they are done; of what losses read of prompts too."""
    logits: str
    on_work: Callable[..., None]
    _step_rows: list[str]

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """The Trainer's; where its state does not fit, what takes less is named. Allocations have let go of all that
        was cached by then, and part of the weights may have moved, so this step is not taken again."""
        optimizer = super().create_optimizer(model)
        take = type(optimizer).step

        def step(own: torch.optim.Optimizer, *args: Any, **kwargs: Any) -> Any:
            try:
                return take(own, *args, **kwargs)
            except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                raise OutOfMemory(
                    f"step {self.state.global_step + 1}: the optimizer's state does not fit the memory\n"
                    "try dpo.optimizer=paged_adamw_8bit, lora=qlora or a smaller lora.rank"
                ) from error

        # A bound method: the scheduler looks for the function in it.
        optimizer.step = types.MethodType(step, optimizer)  # type: ignore[method-assign]
        return optimizer

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        """Forward and backward over all pairs of a step, or this rank's share of them; returns its part of the mean
        loss over the step's pairs."""
        pairs: list[TokenPair] = inputs["pairs"]
        self._step_rows = [pair.id for pair in pairs]
        step = self.state.global_step + 1
        model.train()
        generators = _rng_state()
        window = self._window.snapshot()
        while True:
            trouble: str | None = None
            try:
                loss = self._forward_backward(model, pairs, step)
            except Diverged as error:
                trouble = str(error)
            except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                trouble = OUT_OF_MEMORY
            # One decision for all ranks, before any gradient is exchanged.
            troubles = [text for text in self.ranks.gather(trouble) if text is not None]
            for text in troubles:
                if text != OUT_OF_MEMORY:
                    raise Diverged(text)
            if not troubles:
                break
            # The same step again from clean gradients and the same random state, in smaller parts.
            model.zero_grad()
            self._window.restore(window)
            _set_rng_state(generators)
            self._take_smaller_parts(pairs, step)
        self._charge(pairs, backward=True)
        self._sum_gradients()
        # As TRL's `num_tokens`: of both sequences of each pair. The Trainer keeps its state in each checkpoint.
        self.state.num_input_tokens_seen += sum(
            2 * len(pair.prompt_ids) + len(pair.chosen_ids) + len(pair.rejected_ids) for pair in pairs
        )
        return loss

    def _charge(self, pairs: list[TokenPair], backward: bool = False) -> None:
        """Count the operations of `pairs`, of all ranks: as one process would split them."""
        if self.work is not None and pairs:
            spent = self.work.step if backward else self.work.forward
            amounts = [self.work.of_pairs(part, self.engine.name, self.logits) for part in self.engine.parts(pairs)]
            self.on_work(sum(map(spent, amounts)))

    def _sum_gradients(self) -> None:
        self.ranks.sum_gradients(self.model.parameters())

    def _take_smaller_parts(self, pairs: list[TokenPair], step: int) -> None:
        share = self.ranks.share(pairs)
        held = self.engine.held(share)
        candidates = self.engine.smaller()
        # Ranks hold different pairs; the first choice that helps any of them, for all.
        helps = self.ranks.gather([candidate.held(share) < held for candidate in candidates])
        better = [candidate for candidate, *found in zip(candidates, *helps, strict=True) if any(found)]
        if not better:
            single = len(self.engine.parts(pairs)) == len(pairs)
            size = "one pair does" if single else f"its {len(pairs)} pairs, never split, do"
            fewer = "" if single else "a smaller dpo.batch_size, "
            raise OutOfMemory(
                f"step {step}: {size} not fit the memory\n"
                f"try {fewer}hardware.activation_checkpointing=on, a shorter dataset.max_length, or lora=qlora"
            )
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self.engine.workers.close()
        self.engine = better[0]
        at_once = self.engine.workers.count
        beside = f", {at_once} at once" if at_once > 1 else ""
        size = f"{self.engine.budget} tokens a micro-batch{beside}"
        print(f"step {step}: out of memory; the same step again with {size}", flush=True)

    def _forward_backward(self, model: Any, pairs: list[TokenPair], step: int) -> torch.Tensor:
        trainable = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        whole = self._whole(model, pairs)

        def compute(work: tuple[list[TokenPair], int]) -> tuple[Part, Sequence[torch.Tensor | None]]:
            part, counted = work
            with self.compute_loss_context_manager():
                done = self._pair_loss(model, part, whole, counted)
            loss = done.loss * (counted / len(pairs))
            if self.engine.workers.count == 1:
                self.accelerator.backward(loss)
                return replace(done, loss=done.loss.detach()), []
            # Added up in the order of the parts, not in the order in which threads end.
            gradients = torch.autograd.grad(loss, trainable, allow_unused=True)
            return replace(done, loss=done.loss.detach()), gradients

        total = torch.zeros((), device=self.args.device)
        losses = []
        for done, gradients in self.engine.workers.map(compute, self._parts(pairs)):
            total += done.loss.float() * (done.counted / len(pairs))
            losses.append(done.loss)
            self._window.add(done.figures, done.counted)
            for parameter, gradient in zip(trainable, gradients, strict=False):
                if gradient is not None:
                    parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)
        # Only now: a rank that stopped in the middle would leave others waiting for its part of the backward.
        for loss in losses:
            check_finite(float(loss), "loss", step, self._step_rows)
        return total

    def _parts(self, pairs: Sequence[TokenPair]) -> list[tuple[list[TokenPair], int]]:
        """The micro-batches of this rank's share of `pairs`, each with the number of pairs it counts for."""
        share = self.ranks.share(pairs)
        parts = self.engine.parts(share) if share else []
        return [(part, len(part)) for part in parts]

    def _whole(self, model: Any, pairs: Sequence[TokenPair]) -> Whole:
        """What is settled over all of a step, by all ranks together, before its first part."""
        divergence = self.engine.divergence
        if divergence is None:
            return Whole(pairs)
        of_step = mismatched(pairs, divergence.max_length)
        self._charge(of_step)

        def compute(work: tuple[list[TokenPair], int]) -> float:
            part, counted = work
            with torch.no_grad(), self.compute_loss_context_manager():
                total = divergence.total(model, part, self.reference)
            return total if counted else 0.0

        error: Exception | None = None
        own: float | None = None
        try:
            own = sum(self.engine.workers.map(compute, self._parts(of_step)))
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as found:
            error = found
        # Each rank waits here for the others, whatever became of its own share.
        totals = self.ranks.gather(own)
        if error is not None:
            raise error
        if None in totals:
            raise torch.OutOfMemoryError("out of memory on another rank")
        kl = sum(total for total in totals if total is not None) / examples(of_step)
        # Not max(0, kl), which would hide a NaN.
        return Whole(pairs, 0.0 if kl < 0 else kl)

    def _pair_loss(self, model: Any, part: list[TokenPair], whole: Whole, counted: int) -> Part:
        """Loss and metrics of one part of a step, which counts for `counted` pairs."""
        compute = self.engine.loss or self.trls_loss
        loss, figures = compute(model, part, whole, self.reference)
        return Part(loss, {**figures, "loss": float(loss.detach())}, counted)

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        if isinstance(norm, DTensor):
            norm = norm.full_tensor()
        step = self.state.global_step + 1
        if norm is not None:
            check_finite(float(norm), "gradient norm", step, self._step_rows)
        if step == self.check_gradients_at:
            check_gradients_arrive(model.named_parameters(), step)
        return norm


def _rng_state() -> tuple[torch.Tensor, torch.Tensor | None]:
    return torch.get_rng_state(), torch.cuda.get_rng_state() if torch.cuda.is_available() else None


def _set_rng_state(states: tuple[torch.Tensor, torch.Tensor | None]) -> None:
    torch.set_rng_state(states[0])
    if states[1] is not None:
        torch.cuda.set_rng_state(states[1])
