"""The Trainer's checkpoints replaced by ours: verified, atomic, and the same for one process and for several ranks."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from trl.trainer.dpo_trainer import DPOTrainer

from dpo.modeling.trained_adapter import check_counted
from dpo.training import checkpoints
from dpo.training.engine import Engine
from dpo.training.ranks import Ranks
from dpo.training.window import Window

WINDOW = "window.json"
SPLIT = "split.json"
RNG_STATE = "rng_state.pth"


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
    fingerprints: Mapping[str, str]
    on_saved: Callable[[int], None]
    engine: Engine
    _window: Window

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        step = self.state.global_step

        def fill(folder: Path) -> None:
            self.save_weights(folder)
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
        self.ranks.lead(lambda: checkpoints.write(self.checkpoint_root, step, self.fingerprints, fill))
        self.on_saved(step)

    def _generators(self) -> bytes:
        """The states of this rank's random generators, as the file the Trainer keeps them in."""
        if self.ranks.size == 1:
            return b""
        with tempfile.TemporaryDirectory() as folder:
            self._save_rng_state(folder)
            return (Path(folder) / RNG_STATE).read_bytes()

    def _load_rng_state(self, checkpoint: str | None) -> None:
        super()._load_rng_state(None if checkpoint is None else str(self.ranks.own_folder(Path(checkpoint))))

    def collect(self) -> None:
        """Called on every rank before rank 0 saves: get there what other ranks hold."""

    def save_weights(self, folder: Path) -> None:
        """The adapter (or the whole model) as safetensors, without asking any hub about the base."""
        model = self.accelerator.unwrap_model(self.model)
        if hasattr(model, "peft_config"):
            model.save_pretrained(folder, save_embedding_layers=False)
        else:
            model.save_pretrained(folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        whole = self.accelerator.unwrap_model(self.model)
        if hasattr(whole, "peft_config"):
            # PEFT and the Trainer leave a tensor that is not in the file as it was, and only warn.
            check_counted(whole, Path(resume_from_checkpoint))
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        window = self.ranks.own_folder(Path(resume_from_checkpoint)) / WINDOW
        # Missing only where another number of ranks continues, at the user's explicit word.
        self._window = Window(json.loads(window.read_text()) if window.is_file() else {})
