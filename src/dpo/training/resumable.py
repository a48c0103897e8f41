"""The Trainer's checkpoints replaced by ours: verified, atomic, and the same for one process and for several ranks."""

from __future__ import annotations

import contextlib
import json
import pickle
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from trl.trainer.dpo_trainer import DPOTrainer

from dpo.distributed.ranks import Ranks, summed
from dpo.engine.choice import Engine
from dpo.errors import Refused
from dpo.modeling.loading import check_restored
from dpo.modeling.trained_adapter import check_counted
from dpo.training import checkpoints
from dpo.training.window import Window

WINDOW = "window.json"
SPLIT = "split.json"
AS_HERE = {"save_original_format": False, "max_shard_size": "100TB"}
"""A whole model's tensors by the names they have here, in one file: what a checkpoint is restored from."""
RNG_STATE = "rng_state.pth"


@contextlib.contextmanager
def refuse_pickles(checkpoint: Path | str | None) -> Iterator[None]:
    """Raise Refused where a file holds more than tensors: torch reads no such objects, which could run code."""
    try:
        yield
    except pickle.UnpicklingError:
        raise Refused(
            f"{checkpoint}: holds pickled objects, which could run code and which no run of ours writes\n"
            "start anew with resume=never"
        ) from None


def read_split(checkpoint: Path) -> tuple[int, int]:
    """(token budget, micro-batches at once) of the run that wrote a verified checkpoint, out of memory on its way
    or not: another split of a step would change its rounding."""
    split = json.loads((checkpoint / SPLIT).read_text())
    return int(split["token_budget"]), int(split["at_once"])


class ResumableTrainer(DPOTrainer):
    """Saves and restores what a step depends on: weights, optimizer, generators of every rank, how steps are split,
    and the sums of figures not logged yet."""

    model: Any
    ranks: Ranks
    checkpoint_root: Path
    facts: Callable[[], checkpoints.Facts]
    on_saved: Callable[[int], None]
    engine: Engine
    _window: Window

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        step = self.state.global_step

        def fill(folder: Path) -> None:
            self.save_weights(folder, published=False)
            self._save_optimizer_and_scheduler(str(folder))
            self._save_scaler(str(folder))
            self._save_rng_state(str(folder))
            (folder / WINDOW).write_text(json.dumps(self._window.sums))
            split = {"token_budget": self.engine.budget, "at_once": self.engine.workers.count}
            (folder / SPLIT).write_text(json.dumps(split))
            self.state.save_to_json(str(folder / "trainer_state.json"))
            for rank, (window, generators) in enumerate(others[1:], 1):
                (folder / f"rank-{rank}").mkdir()
                (folder / f"rank-{rank}" / WINDOW).write_text(window)
                (folder / f"rank-{rank}" / RNG_STATE).write_bytes(generators)

        self.collect()
        others = self.ranks.gather((json.dumps(self._window.sums), self._generators()))
        self.ranks.lead(lambda: checkpoints.write(self.checkpoint_root, step, self.facts(), fill))
        self.on_saved(step)

    def _generators(self) -> bytes:
        """The states of this rank's random generators, as the file the Trainer keeps them in."""
        if self.ranks.size == 1:
            return b""
        with tempfile.TemporaryDirectory() as folder:
            self._save_rng_state(folder)
            return (Path(folder) / RNG_STATE).read_bytes()

    def _load_rng_state(self, checkpoint: str | None) -> None:
        own = None if checkpoint is None else self.ranks.own_folder(Path(checkpoint))
        if own is not None and not own.is_dir():
            # More ranks than the checkpoint has, at the user's explicit word: as this one would begin.
            torch.manual_seed(self.args.seed + self.ranks.rank)
            return
        with refuse_pickles(own):
            super()._load_rng_state(None if own is None else str(own))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with refuse_pickles(checkpoint):
            super()._load_optimizer_and_scheduler(checkpoint)

    def collect(self) -> None:
        """Called on every rank before rank 0 saves: get there what other ranks hold."""

    def save_weights(self, folder: Path, published: bool = True) -> None:
        """The adapter (or the whole model) as safetensors, without asking any hub about the base.

        `published`: a whole model's tensors bear the names that others load it by, not those it has here.
        """
        model = self.accelerator.unwrap_model(self.model)
        if hasattr(model, "peft_config"):
            model.save_pretrained(folder, save_embedding_layers=False)
        else:
            model.save_pretrained(folder, **({} if published else AS_HERE))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        whole = self.accelerator.unwrap_model(self.model)
        if hasattr(whole, "peft_config"):
            # PEFT and the Trainer leave a tensor that is not in the file as it was, and at most warn.
            check_counted(whole, Path(resume_from_checkpoint))
        else:
            check_restored(whole, Path(resume_from_checkpoint))
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        parts = [Path(resume_from_checkpoint), *sorted(Path(resume_from_checkpoint).glob("rank-*"))]
        windows = [json.loads((part / WINDOW).read_text()) for part in parts]
        if len(windows) == self.ranks.size:
            self._window = Window(windows[parts.index(self.ranks.own_folder(parts[0]))])
        else:
            # Another number of ranks, at the user's explicit word: what was not logged yet still counts once.
            self._window = Window(summed(windows) if self.ranks.first else {})
