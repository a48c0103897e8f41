"""TRL's DPOTrainer on our token ids: one batch is one optimizer step, split by memory, checked, and resumable.

Losses and metrics have the values of TRL's, the optimizer is the Trainer's own. What differs: pairs arrive as token ids
with their reference log-probs (here), a step is ours (`step`), so are evaluation (`dev`) and checkpoints (`resumable`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch.utils.data import Sampler
from transformers import PrinterCallback
from transformers import Trainer as HfTrainer
from trl.trainer.dpo_config import DPOConfig

from dpo.data.pair import TokenPair
from dpo.distributed.ranks import ALONE, Ranks
from dpo.engine.choice import Engine
from dpo.engine.work import ANSWERS
from dpo.training.cadence import Cadence
from dpo.training.checkpoints import Facts
from dpo.training.dev import EvaluatingTrainer
from dpo.training.interrupts import Interrupts
from dpo.training.order import EpochOrder
from dpo.training.trl_forward import plain_loss
from dpo.training.window import Window


class NoReference(torch.nn.Module):
    """Stands where TRL wants a reference model: no weights, and nobody may ask it. Log-probs come with each pair."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config

    def forward(self, **inputs: Any) -> Any:
        """Never called."""
        raise AssertionError("the reference is not a model here")


class Trainer(EvaluatingTrainer):
    """See the module's docstring. `reference` maps pair id to summed (chosen, rejected) log-probs.

    `model` has its adapters already, and the forward that `engine` computes with.
    """

    def __init__(
        self,
        *,
        model: Any,
        args: DPOConfig,
        engine: Engine,
        tokenizer: Any,
        train_pairs: Sequence[TokenPair],
        dev_pairs: list[TokenPair],
        interrupts: Interrupts,
        checkpoint_root: Path,
        fingerprints: Mapping[str, str],
        ranks: Ranks = ALONE,
        soft_labels: bool = False,
    ) -> None:
        self.engine = engine
        self.trls_loss = plain_loss(self, tokenizer.pad_token_id, soft_labels)
        self.on_log = lambda kind, step, values: None
        self.on_saved = lambda step: None
        self.dev_pairs = dev_pairs
        self.interrupts = interrupts
        self.checkpoint_root = checkpoint_root
        # A run binds more to its checkpoints; see build.build_trainer.
        self.facts = lambda: Facts(fingerprints=fingerprints)
        self.ranks = ranks
        self.reference = {}
        self.check_gradients_at = 1
        self.evaluated_at = None
        # A run counts what it computes; see build.build_trainer.
        self.work, self.logits = None, ANSWERS
        self.on_work = lambda operations, phase="train": None
        self._window = Window()
        self._step_rows = []
        # Without one TRL would load a reference of its own, from whatever the config's name is then, or copy the
        # adapter.
        no_reference: Any = NoReference(model.config)
        super().__init__(
            model=model,
            args=args,
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
        self.add_callback(Cadence(self))

    # Data: our token ids, in our order.

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        # TRL would tokenize, and both engines must see the same token ids.
        return dataset

    def _precompute_ref_logps(self, dataset: Any, name: str, batch_size: int) -> Any:
        # They come from the reference cache.
        return dataset

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler:
        # An order that anyone can tell from the seed: so the reference pass knows which pairs a short run reads.
        return EpochOrder(len(self.train_dataset), self.args.seed)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Not estimated: the Trainer's formula would count padding."""
        return 0

    # Logging.

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """One logged step: the window's means in place of the Trainer's own."""
        if "loss" in logs:
            logs = {**logs, **self._drain(), "num_tokens": self.state.num_input_tokens_seen}
            epoch = {} if self.state.epoch is None else {"epoch": self.state.epoch}
            self.on_log("train", self.state.global_step, {**logs, **epoch})
        HfTrainer.log(self, logs, start_time)
