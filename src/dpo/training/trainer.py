"""TRL's DPOTrainer on our token ids: one batch is one optimizer step, split by memory, checked, and resumable.

Losses and metrics have the values of TRL's, the optimizer is the Trainer's own. What differs: pairs arrive as token ids
with their reference log-probs; a step is split into micro-batches under a token budget, each weighted by its
pairs, so the step does not depend on the split; checkpoints are ours; nothing that is not finite gets stepped on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch.distributed.tensor import DTensor
from torch.utils.data import Sampler
from transformers import PrinterCallback
from transformers import Trainer as HfTrainer
from trl.trainer.dpo_config import DPOConfig

from dpo.data.pair import TokenPair
from dpo.distributed.ranks import ALONE, Ranks
from dpo.engine.choice import NO_ENGINE
from dpo.errors import Diverged, OutOfMemory, is_out_of_memory
from dpo.training.checkpoints import Facts
from dpo.training.flow import Flow
from dpo.training.guards import check_finite, check_gradients_arrive
from dpo.training.interrupts import Interrupts
from dpo.training.order import EpochOrder
from dpo.training.part import Part, Reference
from dpo.training.resumable import ResumableTrainer
from dpo.training.window import Window

OUT_OF_MEMORY = "out of memory"


class NoReference(torch.nn.Module):
    """Stands where TRL wants a reference model: no weights, and nobody may ask it. Log-probs come with each pair."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config

    def forward(self, **inputs: Any) -> Any:
        """Never called."""
        raise AssertionError("the reference is not a model here")


class Trainer(ResumableTrainer):
    """See the module's docstring. `reference` maps pair id to summed (chosen, rejected) log-probs."""

    train_dataset: Any

    def __init__(
        self,
        *,
        model: Any,
        args: DPOConfig,
        peft_config: Any,
        tokenizer: Any,
        train_pairs: Sequence[TokenPair],
        dev_pairs: list[TokenPair],
        interrupts: Interrupts,
        checkpoint_root: Path,
        fingerprints: Mapping[str, str],
        ranks: Ranks = ALONE,
    ) -> None:
        # The engine patches the model this constructor builds, so it is set afterwards.
        self.engine = NO_ENGINE
        self.on_log: Callable[[str, int, dict[str, float]], None] = lambda kind, step, values: None
        self.on_saved: Callable[[int], None] = lambda step: None
        self.dev_pairs = dev_pairs
        self.interrupts = interrupts
        self.checkpoint_root = checkpoint_root
        # A run binds more to its checkpoints; see stages.build_trainer.
        self.facts = lambda: Facts(fingerprints=fingerprints)
        self.ranks = ranks
        self.reference: Reference = {}
        self.check_gradients_at = 1
        # The step whose evaluation has been logged last; a continued run begins with its checkpoint's if it lacks one.
        self.evaluated_at: int | None = None
        self._window = Window()
        self._step_rows: list[str] = []
        # Without an adapter TRL would load a reference of its own, from whatever the config's name is then.
        no_reference: Any = None if peft_config is not None else NoReference(model.config)
        super().__init__(
            model=model,
            args=args,
            peft_config=peft_config,
            ref_model=no_reference,
            processing_class=tokenizer,
            data_collator=lambda rows: {"pairs": [train_pairs[row["row"]] for row in rows]},
            # TRL insists on a Dataset; ours holds row numbers, the token ids stay in memory once.
            train_dataset=Dataset.from_dict({"row": list(range(len(train_pairs)))}),
            eval_dataset=Dataset.from_dict({"row": list(range(len(dev_pairs)))}),
        )
        # Reference log-probs come with each pair; set after the init, which would otherwise compute them itself.
        self.precompute_ref_logps = True
        self.ref_model = None
        self.remove_callback(PrinterCallback)
        self.add_callback(Flow(self))

    # Data: our token ids, in our order.

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset

    def _precompute_ref_logps(self, dataset: Any, name: str, batch_size: int) -> Any:
        return dataset

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler:
        return EpochOrder(len(self.train_dataset), self.args.seed)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Not estimated: the Trainer's formula would count padding."""
        return 0

    # One optimizer step.

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
        self._sum_gradients()
        return loss

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

        def compute(work: tuple[list[TokenPair], int]) -> tuple[Part, Sequence[torch.Tensor | None]]:
            part, counted = work
            with self.compute_loss_context_manager():
                done = self._pair_loss(model, part, pairs, counted)
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

    def _pair_loss(self, model: Any, part: list[TokenPair], step: Sequence[TokenPair], counted: int) -> Part:
        """Loss and metrics of one part of a step, which counts for `counted` pairs."""
        loss, figures = self.engine.loss(model, part, step, self.reference)
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

    # Evaluation and logging.

    def steps_in_all(self) -> int:
        """Optimizer steps of the whole run."""
        if self.args.max_steps > 0:
            return self.args.max_steps
        return math.ceil(self.args.num_train_epochs * math.ceil(len(self.train_dataset) / self.args.train_batch_size))

    def evaluate_now(self) -> dict[str, float]:
        """`evaluate` between training steps, with plain metric names; raises Interrupted when a signal cuts it."""
        metrics = self.evaluate()
        if self.evaluated_at != self.state.global_step:
            self.interrupts.check()
        return {name.removeprefix("eval_"): value for name, value in metrics.items()}

    def lacks_evaluation(self) -> bool:
        """Whether the evaluation of the step this run stands at is due and not logged yet."""
        step = self.state.global_step
        due = step % int(self.args.eval_steps or 1) == 0 or step >= self.steps_in_all()
        return due and self.evaluated_at != step

    def evaluate(self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval") -> Any:
        """TRL's loss and metrics over the dev pairs, each pair counted once.

        A pending signal cuts it: all ranks know of the signal then, `evaluated_at` stays, and nothing is logged.
        """
        from dpo.modeling.policy import keep_quantized_in_train_mode

        if not self.dev_pairs:
            self.evaluated_at = self.state.global_step
            return {}
        kept, self._window, cut = self._window, Window(), False
        self.model.eval()
        if self.args.device.type == "cpu":
            keep_quantized_in_train_mode(self.model)

        def compute(work: tuple[list[TokenPair], int]) -> Part:
            part, counted = work
            with torch.no_grad(), self.compute_loss_context_manager():
                return self._pair_loss(self.model, part, self.dev_pairs, counted)

        parts = self._parts(self.dev_pairs)
        done = self.engine.workers.map(compute, parts)
        for _ in parts:
            # Between those at work too: what was begun ends, nothing more is begun.
            if cut := self._may_cut() and self.interrupts.pending is not None:
                break
            part = next(done)
            self._window.add(part.figures, part.counted)
        cut = any(self.ranks.gather(cut))
        metrics = {} if cut else self._drain()
        self._window = kept
        self.model.train()
        if cut:
            self.agree_on_signal()
            return {}
        self.evaluated_at = self.state.global_step
        self.check_gradients_at = self.state.global_step + 1
        self.on_log("eval", self.state.global_step, metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}

    def _may_cut(self) -> bool:
        """Whether this rank may leave an evaluation on its own."""
        return True

    def agree_on_signal(self) -> bool:
        """Make a signal that any rank has received pending on all, and say whether there is one."""
        agreed = self.ranks.agreed_signal(self.interrupts.pending)
        if agreed is not None:
            self.interrupts.pending = agreed
        return agreed is not None

    def _drain(self) -> dict[str, float]:
        sums = self.ranks.sum_figures(self._window.drain())
        return {name: total / weight for name, (total, weight) in sums.items()}

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """One logged step: the window's means in place of the Trainer's own."""
        if "loss" in logs:
            logs = {**logs, **self._drain()}
            self.on_log("train", self.state.global_step, dict(logs))
        HfTrainer.log(self, logs, start_time)

    def _maybe_log_save_evaluate(self, tr_loss: Any, grad_norm: Any, model: Any, *args: Any, **kwargs: Any) -> None:
        """Log, save, and evaluate last: an evaluation changes nothing that a checkpoint holds, so a kill or a signal
        during it costs the evaluation alone, which a continued run does first (see Flow)."""
        due, saved = self.control.should_evaluate, self.control.should_save
        self.control.should_evaluate = False
        super()._maybe_log_save_evaluate(tr_loss, grad_norm, model, *args, **kwargs)
        if not due:
            return
        self.evaluate()
        if self.evaluated_at != self.state.global_step:
            if not saved:
                self._save_checkpoint(model, None)
            self.control.should_training_stop = True


def _rng_state() -> tuple[torch.Tensor, torch.Tensor | None]:
    return torch.get_rng_state(), torch.cuda.get_rng_state() if torch.cuda.is_available() else None


def _set_rng_state(states: tuple[torch.Tensor, torch.Tensor | None]) -> None:
    torch.set_rng_state(states[0])
    if states[1] is not None:
        torch.cuda.set_rng_state(states[1])
