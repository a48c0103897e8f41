"""When a run evaluates, saves and stops."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

if TYPE_CHECKING:
    from dpo.training.trainer import Trainer


class Flow(TrainerCallback):
    """Sets the Trainer's flags at the end of a step."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """At the last step evaluate and save; on a signal save here, unless an evaluation is due at this very step
        (the checkpoint of a step includes its evaluation, so an earlier one is kept)."""
        if state.global_step >= state.max_steps:
            control.should_evaluate = control.should_save = True
        elif self.trainer.agree_on_signal():
            control.should_save = not control.should_evaluate
            control.should_evaluate = False
            control.should_training_stop = True
        return control
