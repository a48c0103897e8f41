"""A run's own trainer and its steps on tensors without contents: what each stage takes of the device's memory."""

from __future__ import annotations

import contextlib
import gc
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from datasets import Dataset
from transformers import TrainerCallback

from dpo.config.schema import Config
from dpo.data.pair import TokenPair
from dpo.distributed.ranks import ALONE
from dpo.engine.budget import cost
from dpo.engine.kto_divergence import mismatched
from dpo.engine.lean_linear import keeps_dequantized
from dpo.engine.log_probs import sequence_log_probs
from dpo.engine.memory import NeedOf
from dpo.engine.workers import Workers
from dpo.modeling.device import Compute
from dpo.modeling.modes import is_4bit
from dpo.modeling.weights import Weights
from dpo.planning.base import fake_base, held
from dpo.planning.stand_ins import answered
from dpo.planning.trace import Trace
from dpo.training import build
from dpo.training.base import Base
from dpo.training.cadence import Cadence
from dpo.training.interrupts import Interrupts
from dpo.training.job import Follower, FollowersLedger, Job
from dpo.training.reference import REFERENCE_TOKENS
from dpo.training.trainer import Trainer

KNOWN = (-1.0, -1.0)
"""Log-probs of the reference, where nothing depends on their values."""


@dataclass(frozen=True)
class Stage:
    """What one stage took. Bytes: `held` lay there when it began, `peak` at most, of that `parts` by purpose; flops."""

    held: int
    peak: int
    parts: Counter[str]
    flops: int


class Rehearsal:
    """A trainer built by `build.build_trainer` inside a fake device, and what it said on the way.

    Args:
        config: what is trained and how; its token budget and checkpointing are kept to where it names them.
        shape: transformers' config of the model.
        pairs: the run's longest, from which its engine chooses; token ids do not matter.
        trace: that stands in the fake device's context.
        measure: what the engine plans with, see `choice.choose_engine`.
        probe: whether its few tokens are run as well that compare the trainer's log-probs with the model's.
    """

    def __init__(
        self,
        config: Config,
        shape: Any,
        compute: Compute,
        pairs: Sequence[TokenPair],
        trace: Trace,
        measure: NeedOf | None = None,
        probe: bool = True,
    ) -> None:
        self.trace, self.said, self._folder = trace, list[str](), tempfile.TemporaryDirectory()
        folder = Path(self._folder.name)
        run = Follower(folder, {"fingerprints": {}, "end_of_turn": 0, "id": "rehearsal", "created": 0.0})
        job = _Silent(config, run, FollowersLedger(folder, 0.0), Interrupts(), ALONE)
        job.said = self.said

        def load(_: Any, quantization: Any, compute: Compute, attention: str, trainable: bool) -> Any:
            # A load quantizes a weight at a time: all of them in 16 bits never lie there.
            trace.counting = False
            model = fake_base(shape, quantization, compute, attention, trainable)
            model.config._name_or_path = config.model.path
            for tensor in held(model):
                trace.see(tensor)
            trace.counting = True
            trace.purpose = "adapters"
            return model

        base = Base(Weights(folder, config.model.path, None, ""), None, _no_tokenizer(), compute, None, None)
        data: Any = SimpleNamespace(train=pairs, dev=pairs[:1])
        needed: Any = pairs
        without = {} if probe else {"check_scores": lambda *_: None}
        with answered(build, without):
            self.trainer: Trainer = build.build_trainer(job, base, data, needed, None, measure, load)
        self.shape, self.compute = shape, compute
        self.checkpointing = bool(self.trainer.args.activation_checkpointing)
        self.kept = any(is_4bit(module) and keeps_dequantized(module) for module in self.trainer.model.modules())
        # Threads have modes of their own, in which nothing is traced.
        self.engine = self.trainer.engine
        self.trainer.engine = replace(self.engine, workers=Workers())
        self.trainer.remove_callback(Cadence)
        self.trainer.args.save_strategy = self.trainer.args.eval_strategy = "no"

    def tokens(self, pairs: Sequence[TokenPair]) -> int:
        """What `pairs` cost in the engine's layout."""
        return cost(pairs, self.engine.name)

    def reference(self, pairs: Sequence[TokenPair]) -> Stage:
        """The reference pass over `pairs`, as `reference.add_reference` computes what no cache holds."""
        trainer = self.trainer
        fresh = hasattr(trainer.model, "disable_adapter")
        off = trainer.model.disable_adapter() if fresh else contextlib.nullcontext()
        with self._stage("reference") as stage, off, trainer.accelerator.autocast():
            sequence_log_probs(trainer.model, pairs, REFERENCE_TOKENS, ld_alpha=trainer.ld_alpha)
        return stage[0]

    def evaluation(self, pairs: Sequence[TokenPair]) -> Stage:
        """A look at `pairs` as if they were the dev pairs."""
        self._know(pairs)
        self.trainer.dev_pairs = list(pairs)
        with self._stage("evaluation") as stage:
            self.trainer.evaluate_now()
        return stage[0]

    def train(self, steps: Sequence[Sequence[TokenPair]], gradients: bool = False) -> list[Stage]:
        """`trainer.train()` over these steps in their order, and what each took.

        With `gradients` each begins with those of an earlier micro-batch, as all but the first of a step do.
        """
        trainer, looks = self.trainer, _Looks(self, gradients)
        for pairs in steps:
            self._know(pairs)
        trainer.args.per_device_train_batch_size = trainer._train_batch_size = 1
        trainer.args.max_steps = len(steps)
        trainer.train_dataset = Dataset.from_dict({"row": list(range(len(steps)))})
        trainer.data_collator = lambda rows: {"pairs": list(steps[rows[0]["row"]])}
        in_order: Any = torch.utils.data.SequentialSampler
        trainer._get_train_sampler = in_order  # type: ignore[method-assign]
        trainer.add_callback(looks)
        try:
            trainer.train()
        finally:
            trainer.remove_callback(looks)
        return looks.stages

    def _know(self, pairs: Sequence[TokenPair]) -> None:
        asked = list(pairs)
        if self.trainer.engine.divergence is not None:
            asked += mismatched(pairs, self.trainer.engine.divergence.max_length)
        self.trainer.reference = {**self.trainer.reference, **{pair.id: KNOWN for pair in asked}}

    @contextlib.contextmanager
    def _stage(self, purpose: str) -> Iterator[list[Stage]]:
        found: list[Stage] = []
        # What hangs in a cycle of the stage before would be counted here.
        gc.collect()
        before = self.trace.allocator.allocated
        with self.trace.stage(purpose):
            yield found
        found.append(Stage(before, self.trace.peak, self.trace.parts, self.trace.flops))


class _Looks(TrainerCallback):
    """Measures each step of a training."""

    def __init__(self, rehearsal: Rehearsal, gradients: bool) -> None:
        self.rehearsal, self.gradients = rehearsal, gradients
        self.stages: list[Stage] = []
        self._open = contextlib.ExitStack()
        self._found: list[Stage] = []

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """The gradients of an earlier micro-batch, then the step."""
        if self.gradients:
            with self.rehearsal.trace.made_for("gradients"):
                for parameter in self.rehearsal.trainer.model.parameters():
                    if parameter.requires_grad:
                        parameter.grad = torch.zeros_like(parameter)
        self._found = self._open.enter_context(self.rehearsal._stage("step"))

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """The step is over, its gradients are gone."""
        self._open.close()
        self.stages += self._found


class _Silent(Job):
    said: list[str]

    def say(self, line: str) -> None:
        """Kept, not printed."""
        self.said.append(line)


def _no_tokenizer() -> Any:
    """A tokenizer that nothing is tokenized with: a trainer asks for one by name."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    names = dict.fromkeys(("pad_token", "eos_token", "unk_token"), "<end>")
    raw = Tokenizer(models.WordLevel({"<end>": 0}, names["unk_token"]))
    return PreTrainedTokenizerFast(tokenizer_object=raw, **names)
