"""`judge=[reward_model]`: a sequence classifier trained on preferences scores each answer; batched."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from dpo.config.judges import Reading, RewardModelJudge
from dpo.config.nearest import nearest
from dpo.errors import ConfigError
from dpo.evaluation.judges.interface import Item, Judge, Verdict
from dpo.evaluation.judges.loading import resolve_judge
from dpo.modeling.weights import Weights

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
        """See Judge. An answer too long for the model is undecided, never cut."""
        scorer = self._loaded = self._loaded or _Scorer(self._settings, self._weights)
        encoded = [scorer.encode(item) for item in items]
        fitting = [i for i, e in enumerate(encoded) if scorer.longest is None or len(e["input_ids"]) <= scorer.longest]
        for index in sorted(set(range(len(items))) - set(fitting)):
            length = len(encoded[index]["input_ids"])
            reason = f"{length} tokens, the model takes {scorer.longest}"
            yield [Verdict(items[index].id, None, None, reason, 0.0, self.provenance)]
        fitting.sort(key=lambda i: len(encoded[i]["input_ids"]))
        size = self._settings.batch_size
        for start in range(0, len(fitting), size):
            part = fitting[start : start + size]
            scores = scorer.score([encoded[i] for i in part])
            yield [
                Verdict(items[i].id, score, None, "", 0.0, self.provenance)
                for i, score in zip(part, scores, strict=True)
            ]


class _Scorer:
    """The loaded model: text to token ids to rewards."""

    def __init__(self, settings: RewardModelJudge, weights: Weights) -> None:
        from transformers import AutoModelForSequenceClassification, AutoTokenizer
        from transformers.utils import logging

        from dpo.config.hardware import Device, Precision
        from dpo.data.control_tokens import Codec
        from dpo.modeling.device import choose_compute
        from dpo.modeling.policy import quantization_config, templates
        from dpo.modeling.tokenizer import load_tokenizer

        logging.disable_progress_bar()
        self._pairs = settings.reading is Reading.pair
        if self._pairs:
            self.tokenizer = AutoTokenizer.from_pretrained(weights.folder)
        else:
            try:
                self.tokenizer = load_tokenizer(weights.folder, settings.chat_template, templates())
            except ConfigError as error:
                raise ConfigError(str(error).replace("model.chat_template", f"{KEY}.chat_template")) from None
            self._codec = Codec(self.tokenizer)
        compute = choose_compute(Device.auto, Precision.auto)
        quantization: Any = quantization_config(settings.quantization, compute)
        if quantization is not None:
            # The head is small and its rounding would be the reward's.
            quantization.llm_int8_skip_modules = ["score", "classifier", "pooler"]
        self.model, found = AutoModelForSequenceClassification.from_pretrained(
            weights.folder,
            dtype=compute.dtype,
            quantization_config=quantization,
            device_map={"": 0 if compute.device == "cuda" else "cpu"},
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
        if missing := sorted(found["missing_keys"]):
            # transformers would fill them at random and only warn.
            raise ConfigError(f"{KEY}.path={settings.path}: not a reward model: it has no {missing[0]}")
        self.model.eval()
        self._column = _column(self.model.config, settings)
        text = self.model.config.get_text_config()
        # RoBERTa and its kin count positions from the padding id on.
        offset = (text.pad_token_id or 0) + 1 if text.model_type in ("roberta", "xlm-roberta", "camembert") else 0
        positions = getattr(text, "max_position_embeddings", None)
        self.longest: int | None = None if positions is None else positions - offset

    def encode(self, item: Item) -> dict[str, list[int]]:
        """Token ids (and segment ids where the model reads two) of prompt and answer, uncut.

        Control tokens typed in a text stay text: an answer cannot end its own turn and write another.
        """
        from dpo.data.chat_template import join_turns

        turns, lead, _ = join_turns(item.prompt)
        answer = lead + item.answer
        if self._pairs:
            asked = (
                turns[0]["content"] if len(turns) == 1 else "\n\n".join(f"{t['role']}: {t['content']}" for t in turns)
            )
            return dict(self.tokenizer(asked, answer, split_special_tokens=True, return_attention_mask=False))
        turns = [*turns, {"role": "assistant", "content": answer}]
        sealed = any(self._codec.needs_sealing(turn["content"]) for turn in turns)
        if sealed:
            turns = [{**turn, "content": self._codec.hide(turn["content"])} for turn in turns]
        text = str(self.tokenizer.apply_chat_template(turns, tokenize=False))
        return {"input_ids": self._codec.encode(self._codec.seal(text) if sealed else text, sealed)}

    def score(self, rows: Sequence[dict[str, list[int]]]) -> list[float]:
        """The reward of each row; the same in any batch, up to rounding.

        Decoders read their reward at the last token that is not the padding id. Where the model names no padding id,
        one that no row contains is used, so that this is the last token, as it is without padding.
        """
        import torch

        config = self.model.config.get_text_config()
        pad = config.pad_token_id
        if pad is None or pad < 0:
            used = {token for row in rows for token in row["input_ids"]}
            pad = next(i for i in range(config.vocab_size) if i not in used)
        width = max(len(row["input_ids"]) for row in rows)
        batch = {
            name: torch.tensor(
                [row[name] + [pad if name == "input_ids" else 0] * (width - len(row[name])) for row in rows],
                device=self.model.device,
            )
            for name in rows[0]
        }
        lengths = torch.tensor([[len(row["input_ids"])] for row in rows], device=self.model.device)
        mask = (torch.arange(width, device=self.model.device) < lengths).long()
        before, config.pad_token_id = config.pad_token_id, pad
        try:
            with torch.no_grad():
                logits = self.model(**batch, attention_mask=mask).logits
        finally:
            config.pad_token_id = before
        found: list[float] = logits[:, self._column].float().tolist()
        return found


def _column(config: Any, settings: RewardModelJudge) -> int:
    """Which output is the reward."""
    names = [str(config.id2label[i]) for i in range(config.num_labels)]
    if settings.label is None:
        if config.num_labels == 1:
            return 0
        raise ConfigError(
            f"{KEY}.path={settings.path}: has {config.num_labels} outputs ({', '.join(names[:8])}); "
            f"name the one that is the reward: {KEY}.label=NAME"
        )
    if settings.label in names:
        return names.index(settings.label)
    if settings.label.isdecimal() and int(settings.label) < config.num_labels:
        return int(settings.label)
    raise ConfigError(f"{KEY}.label={settings.label}: no such output{nearest(settings.label, names)}")


def build(settings: RewardModelJudge) -> RewardJudge:
    """Finds the weights (a hub id is fetched); the model itself is loaded with the first answer."""
    return RewardJudge(settings, resolve_judge(f"{KEY}.path", settings.path, settings.revision))
