"""`judge=[reward_model]`: a sequence classifier trained on preferences scores each answer; batched."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dpo.config.judges import Reading, RewardModelJudge
from dpo.data.pair import Message
from dpo.data.refusal import Reason, RowRefused
from dpo.data.sources.fields import as_text
from dpo.errors import ConfigError
from dpo.evaluation.judges.classifier import Classifier
from dpo.evaluation.judges.interface import Item, Judge, Verdict
from dpo.evaluation.judges.loading import resolve_judge
from dpo.evaluation.judges.reward.run import RunJudge
from dpo.modeling.weights import Weights

if TYPE_CHECKING:
    from dpo.data.chat.dialect import Tools, Turns

KEY = "judge.reward_model"


class RewardJudge(Judge):
    """The score is the model's raw output (a logit): only differences between answers to one prompt mean anything."""

    name = "reward_model"
    label = "reward"

    def __init__(self, settings: RewardModelJudge, weights: Weights) -> None:
        self._settings, self._weights = settings, weights
        self._loaded: _Scorer | None = None
        self.provenance = f"{weights.source} ({weights.revision or weights.fingerprint})"
        s = settings
        bits = None if s.quantization is None else (s.quantization.bits, str(s.quantization.type))
        self.fingerprint = f"{weights.fingerprint} {s.label} {s.reading.name} {s.chat_template} {bits}"
        self.definition = (
            f"raw output of {self.provenance}; its unit is the model's own, higher is better, and only answers to one "
            "prompt can be compared"
        )

    def judge(self, items: Sequence[Item]) -> Iterator[list[Verdict]]:
        """See Judge. An answer too long for the model is undecided, never cut; so is one whose text, or whose prompt's,
        the model's chat template alters."""
        scorer = self._loaded = self._loaded or _Scorer(self._settings, self._weights)
        longest = scorer.classifier.longest
        fitting, rows = [], []
        for index, item in enumerate(items):
            try:
                row = scorer.encode(item)
            except RowRefused as refused:
                yield [Verdict(item.id, None, None, str(refused.refusal), 0.0, self.provenance)]
                continue
            if longest is None or len(row["input_ids"]) <= longest:
                fitting.append(index)
                rows.append(row)
            else:
                reason = f"{len(row['input_ids'])} tokens, the model takes {longest}"
                yield [Verdict(item.id, None, None, reason, 0.0, self.provenance)]
        for part, logits in scorer.classifier.batches(rows, self._settings.batch_size):
            yield [
                Verdict(items[fitting[i]].id, reward, None, "", 0.0, self.provenance)
                for i, reward in zip(part, logits[:, scorer.column].tolist(), strict=True)
            ]


class _Scorer:
    """The loaded model and how it reads: prompt and answer to token ids."""

    def __init__(self, settings: RewardModelJudge, weights: Weights) -> None:
        from transformers import AutoTokenizer

        from dpo.data.chat.dialect import Dialect
        from dpo.data.control_tokens import Codec
        from dpo.modeling.policy import templates
        from dpo.modeling.tokenizer import load_tokenizer

        self._pairs = settings.reading is Reading.pair
        if self._pairs:
            self.tokenizer = AutoTokenizer.from_pretrained(weights.folder)
        else:
            try:
                self.tokenizer = load_tokenizer(weights.folder, settings.chat_template, templates())
            except ConfigError as error:
                raise ConfigError(str(error).replace("model.chat_template", f"{KEY}.chat_template")) from None
            self._codec = Codec(self.tokenizer)
            self._dialect = Dialect(self._rendered)
        self.classifier = Classifier(KEY, settings.path, weights, settings.quantization)
        self.column = self.classifier.column(settings.label, (), "reward")

    def encode(self, item: Item) -> dict[str, list[int]]:
        """Token ids (and segment ids where the model reads two) of prompt and answer, uncut.

        Control tokens typed in a text stay text: an answer cannot end its own turn and write another.
        """
        from dpo.data.chat.coverage import stands_somehow, unsaid
        from dpo.data.chat.dialect import mapped, strings
        from dpo.data.chat.template import join_turns
        from dpo.data.sources.messages import described

        if self._pairs:
            turns, lead, _ = join_turns([Message(turn.role, as_text(turn)) for turn in item.asked])
            asked = (
                turns[0]["content"] if len(turns) == 1 else "\n\n".join(f"{t['role']}: {t['content']}" for t in turns)
            )
            read = self.tokenizer(asked, lead + item.answer, split_special_tokens=True, return_attention_mask=False)
            return dict(read)
        turns, lead, _ = join_turns(item.prompt)
        turns = [*turns, {"role": "assistant", "content": lead + item.answer}]
        tools = json.loads(item.tools) if item.tools else None
        sealed = any(self._codec.needs_sealing(text) for text in strings([turns, tools]))
        if sealed:
            hide = self._codec.hide
            turns = [{k: v if k == "role" else mapped(v, hide) for k, v in turn.items()} for turn in turns]
            tools = mapped(tools, hide)
        text = self._rendered(self._dialect.adapted(turns), tools, False)
        for number, turn in enumerate(turns):
            # What an assistant said before may lose its reasoning; all else has to be there.
            plain = len(turn) == 2 and 0 < number < len(turns) - 2
            if not plain and unsaid(turn, text) - {"reasoning_content"}:
                raise RowRefused(Reason.altered, turn["role"], f"text of role {turn['role']}")
        if not all(stands_somehow(str(described(tool)["name"]), text) for tool in tools or ()):
            raise RowRefused(Reason.altered, "tools", "the tools")
        return {"input_ids": self._codec.encode(self._codec.seal(text) if sealed else text, sealed)}

    def _rendered(self, turns: Turns, tools: Tools, generation: bool) -> str:
        rendered = self.tokenizer.apply_chat_template(
            turns,
            tools=tools,  # type: ignore[arg-type]
            tokenize=False,
            add_generation_prompt=generation,
        )
        return str(rendered)


def build(settings: RewardModelJudge) -> Judge:
    """Finds the run or the weights (a hub id is fetched); the model itself is loaded with the first answer."""
    run = Path(settings.path).expanduser()
    if (run / "run.json").is_file():
        return RunJudge(run, settings.batch_size)
    return RewardJudge(settings, resolve_judge(f"{KEY}.path", settings.path, settings.revision))
