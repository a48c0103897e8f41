"""`judge=[reward_model]` with the folder of a run of dpo=reward: prompts and answers as that run read them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dpo.config.read import read_config
from dpo.data.pair import Pair, TokenPair
from dpo.data.refusal import Refusal
from dpo.errors import ConfigError
from dpo.evaluation.judges.interface import Item, Judge, Verdict
from dpo.modeling.facts import check_config, check_final
from dpo.modeling.reward_head import is_reward
from dpo.records.run import read_record

if TYPE_CHECKING:
    from dpo.data.tokens import Encoder
    from dpo.engine.reward_model import RewardModel

UNCUT = 2**20


class RunJudge(Judge):
    """The score is the reward: log odds of being preferred over an answer with the reward 0, to the same prompt."""

    name = "reward_model"
    label = "reward"

    def __init__(self, run: Path, batch_size: int) -> None:
        config, record = read_config(run / "config.yaml"), read_record(run)
        if not is_reward(config):
            raise ConfigError(
                f"judge.reward_model.path={run}: a run of dpo={'+'.join(config.dpo.loss)}, not of dpo=reward"
            )
        check_config(run, config)
        check_final(run)
        self._run, self._batch_size = run, batch_size
        self._loaded: tuple[RewardModel, Encoder] | None = None
        facts = [record.get("final"), record.get("fingerprints", {}).get("base"), record.get("end_of_turn")]
        self.fingerprint = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
        self.provenance = f"{run.parent.name}/{run.name} ({self.fingerprint})"
        self.definition = (
            f"reward of {self.provenance}, trained on {config.dataset.source}: log odds, higher is better; only "
            "answers to one prompt can be compared. A cut answer is read without an end of turn."
        )

    def judge(self, items: Sequence[Item]) -> Iterator[list[Verdict]]:
        """See Judge. An answer too long for the model is undecided, never cut; so is one that cannot be rendered."""
        model, encoder = self._loaded = self._loaded or self._load()
        read: list[tuple[int, TokenPair]] = []
        for index, item in enumerate(items):
            pair = self._encoded(encoder, item)
            if isinstance(pair, TokenPair):
                size = len(pair.prompt_ids) + len(pair.chosen_ids)
                if model.longest is None or size <= model.longest:
                    read.append((index, pair))
                    continue
                reason = f"{size} tokens, the model takes {model.longest}"
            else:
                reason = str(pair)
            yield [Verdict(item.id, None, None, reason, 0.0, self.provenance)]
        read.sort(key=lambda one: len(one[1].prompt_ids) + len(one[1].chosen_ids))
        for start in range(0, len(read), self._batch_size):
            part = read[start : start + self._batch_size]
            rewards = model.rewards([pair for _, pair in part])
            yield [
                Verdict(items[index].id, reward, None, "", 0.0, self.provenance)
                for (index, _), (reward, _) in zip(part, rewards, strict=True)
            ]

    def _load(self) -> tuple[RewardModel, Encoder]:
        from dpo.data.tokens import Encoder
        from dpo.engine.reward_model import RewardModel

        model = RewardModel(self._run)
        return model, Encoder(model.tokenizer, UNCUT, chat_template_kwargs=model.config.dataset.chat_template_kwargs)

    def _encoded(self, encoder: Encoder, item: Item) -> TokenPair | Refusal:
        if not item.answer.strip():
            # A turn that ended at once.
            return TokenPair(item.id, encoder.encode_prompt(item.prompt, item.tools), [encoder.end_id], [])
        found = encoder.encode(Pair(item.id, item.prompt, item.answer, "", item.id, tools=item.tools))
        if isinstance(found, Refusal) or item.finished:
            return found
        return TokenPair(found.id, found.prompt_ids, found.chosen_ids[:-1], [])
