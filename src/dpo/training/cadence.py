"""When a run evaluates, saves and stops."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

if TYPE_CHECKING:
    from dpo.training.trainer import Trainer


class Cadence(TrainerCallback):
    """Sets the Trainer's flags at the end of a step, and makes good an evaluation that a stop kept from a step."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The cadences asked for now, not those of the checkpoint; and the evaluation of its own step, when the run was
        stopped before it was logged."""
        state.compute_steps(args, state.max_steps)
        if self.trainer.lacks_evaluation():
            self.trainer.evaluate_now()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """At the last step evaluate and save; on a signal save and stop here, whatever evaluation is due."""
        if state.global_step >= state.max_steps:
            control.should_evaluate = control.should_save = True
        if self.trainer.agree_on_signal():
            control.should_save = control.should_training_stop = True
        return control
