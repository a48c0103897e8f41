"""A trained reward model, read from its run: token ids in, rewards out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpo.engine.lean_linear import keep_dequantized
from dpo.engine.memory import free_memory
from dpo.engine.packed_forward import install
from dpo.engine.rewards import rewards_of
from dpo.engine.work import NOTHING, work_of
from dpo.errors import ConfigError
from dpo.modeling.policy import load_trained
from dpo.modeling.reward_head import is_reward

if TYPE_CHECKING:
    from dpo.data.pair import TokenPair
    from dpo.modeling.device import Compute

SCORING_TOKENS = 4096


class RewardModel:
    """`run` must be one of dpo=reward; raises ConfigError for another, and as `load_trained` does.

    `spent` counts the operations done so far.
    """

    def __init__(self, run: Path, compute: Compute | None = None) -> None:
        self.model, self.tokenizer, self.config = load_trained(run, compute)
        if not is_reward(self.config):
            raise ConfigError(f"{run}: not a reward model but a run of dpo={'+'.join(self.config.dpo.loss)}")
        if install(self.model) is None:
            keep_dequantized(self.model, self.model.dtype, free_memory(self.model.device))
            self._engine = "packed"
        else:
            self._engine = "plain"
        self.spent = 0
        self._work = work_of(self.model)

    @property
    def longest(self) -> int | None:
        """Most tokens of prompt and answer; None where nothing bounds them."""
        text: Any = self.model.config.get_text_config()
        found: int | None = getattr(text, "max_position_embeddings", None)
        return found

    def rewards(self, pairs: Sequence[TokenPair]) -> list[tuple[float, float]]:
        """Of (chosen, rejected) of each pair; an answer that was cut lacks its end of turn and is read as it stands."""
        self.spent += sum(self._work.forward(self._work.of_pairs([pair], self._engine, NOTHING)) for pair in pairs)
        return rewards_of(self.model, pairs, SCORING_TOKENS)
