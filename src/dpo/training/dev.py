"""Evaluation on the dev pairs between steps: when it is due, what a signal does to it, and where it stands."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from dpo.data.pair import TokenPair, by_part
from dpo.engine.micro_batch import Part, Whole
from dpo.modeling.modes import keep_quantized_in_train_mode
from dpo.training.interrupts import Interrupts
from dpo.training.step import SteppingTrainer
from dpo.training.window import Window


class EvaluatingTrainer(SteppingTrainer):
    """The Trainer's evaluation loop replaced by the step's own parts, without gradients."""

    train_dataset: Any
    dev_pairs: list[TokenPair]
    interrupts: Interrupts
    on_log: Callable[[str, int, dict[str, float]], None]
    evaluated_at: int | None
    """The step whose evaluation has been logged last; a continued run begins with its checkpoint's if it lacks one."""

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

    def router_loss(self, metrics: dict[str, float]) -> float:
        """What TRL adds to the loss of a mixture of experts so that its router uses them all; 0 for other models."""
        return float(self.router_aux_loss_coef) * metrics.get("aux_loss", 0.0)

    def lacks_evaluation(self) -> bool:
        """Whether the evaluation of the step this run stands at is due and not logged yet."""
        step = self.state.global_step
        due = step % int(self.args.eval_steps or 1) == 0 or step >= self.steps_in_all()
        return due and self.evaluated_at != step

    def evaluate(self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval") -> Any:
        """TRL's loss and metrics over the dev pairs, each pair counted once.

        A pending signal cuts it: all ranks know of the signal then, `evaluated_at` stays, and nothing is logged.
        """
        if not self.dev_pairs:
            self.evaluated_at = self.state.global_step
            return {}
        kept, self._window, cut = self._window, Window(), False
        self.model.eval()
        keep_quantized_in_train_mode(self.model)

        whole = self._whole(self.model, self.dev_pairs)

        def compute(work: tuple[list[TokenPair], int]) -> Part:
            part, counted = work
            with torch.no_grad(), self.compute_loss_context_manager():
                return self._pair_loss(self.model, part, whole, counted)

        names, parts = self._named_parts()
        done = self.engine.workers.map(compute, parts)
        for name in names:
            # Between those at work too: what was begun ends, nothing more is begun.
            if cut := self._may_cut() and self.interrupts.pending is not None:
                break
            part = next(done)
            self._window.add(part.figures, part.counted)
            if name:
                self._window.add({f"{name}/{figure}": value for figure, value in part.figures.items()}, part.counted)
        if not cut:
            self._charge(self.dev_pairs)
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

    def _named_parts(self) -> tuple[list[str], list[tuple[list[TokenPair], int]]]:
        """The micro-batches of the dev pairs; of a mixture each holds pairs of one part, whose name stands first."""
        of_parts = by_part(pair.id for pair in self.dev_pairs)
        if len(of_parts) < 2 or self.engine.coupled:
            parts = self._parts(self.dev_pairs)
            return [""] * len(parts), parts
        found = [
            (name, part)
            for name, places in sorted(of_parts.items())
            for part in self._parts([self.dev_pairs[place] for place in places])
        ]
        return [name for name, _ in found], [part for _, part in found]

    def value_of(self, pairs: list[TokenPair]) -> float:
        """The loss of some pairs as a step would compute it, on this rank alone; in the mode and context of the
        caller."""
        whole = Whole(pairs)
        parts = [self._pair_loss(self.model, part, whole, len(part)) for part in self.engine.parts(pairs)]
        return sum(float(part.loss) * part.counted for part in parts) / len(pairs)

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

    def _maybe_log_save_evaluate(self, tr_loss: Any, grad_norm: Any, model: Any, *args: Any, **kwargs: Any) -> None:
        """Log, save, and evaluate last: an evaluation changes nothing that a checkpoint holds, so a kill or a signal
        during it costs the evaluation alone, which a continued run does first (see Cadence)."""
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
