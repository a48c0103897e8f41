"""A judge model loaded here, with this project's own loading and sampling."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from dpo.config.judges import JudgeModel
from dpo.evaluation.judges.chat import Reply
from dpo.evaluation.judges.rubric import Question

MARGIN = 8  # tokens of room a context needs besides prompt and reply


class LocalChat:
    """Loads the model at the first question. Its replies begin with the question's lead, so that also small models
    answer in the form asked for."""

    def __init__(self, config: JudgeModel, temperature: float, max_tokens: int) -> None:
        from dpo.evaluation.judges.loading import resolve_judge

        self._config, self._temperature, self._max_tokens = config, temperature, max_tokens
        self._weights = resolve_judge("judge.llm.local.path", config.path, config.revision)
        self.identity = f"{config.path} ({self._weights.fingerprint}), temperature {temperature:g}"
        self.workers = config.batch_size
        self._loaded: tuple[Any, Any, Any] | None = None

    def ask(self, questions: Sequence[Question]) -> Iterator[tuple[int, Reply]]:
        """See Chat. Control tokens typed inside a text stay text."""
        from dpo.evaluation.generate import Sampling, sample

        model, tokenizer, encoder = self._load()
        longest = getattr(model.config, "max_position_embeddings", None)
        fitting: list[int] = []
        ids: list[list[int]] = []
        for index, question in enumerate(questions):
            found = encoder.encode_prompt(question.messages) + encoder.codec.encode(question.lead)
            if longest is not None and len(found) + self._max_tokens + MARGIN > longest:
                yield index, Reply(None, f"{len(found)} tokens to read, the model takes {longest}", final=True)
            else:
                fitting.append(index)
                ids.append(found)
        sampling = Sampling(self._temperature, len(tokenizer), self._max_tokens, 0)
        stops = {encoder.end_id, tokenizer.eos_token_id, *_eos(model)} - {None}
        seeds = [str(questions[index].seed) for index in fitting]
        for part, answers in sample(
            model, ids, sampling, stops, tokenizer.pad_token_id, self._config.batch_size, row_seeds=seeds
        ):
            for i, answer in zip(part, answers, strict=True):
                text = tokenizer.decode(answer.ids, skip_special_tokens=True)
                lead = questions[fitting[i]].lead
                yield (
                    fitting[i],
                    Reply(lead + text, prompt_tokens=len(ids[i]), completion_tokens=len(answer.ids) + answer.finished),
                )

    def _load(self) -> tuple[Any, Any, Any]:
        if self._loaded is None:
            from dpo.config.hardware import Device, Precision
            from dpo.data.tokens import Encoder
            from dpo.modeling.device import choose_compute
            from dpo.modeling.policy import load_base, templates
            from dpo.modeling.tokenizer import load_tokenizer

            compute = choose_compute(Device.auto, Precision.auto)
            tokenizer = load_tokenizer(self._weights.folder, self._config.chat_template, templates())
            model = load_base(self._weights, self._config.quantization, compute, "sdpa").eval()
            self._loaded = model, tokenizer, Encoder(tokenizer, 2**20)
        return self._loaded


def _eos(model: Any) -> list[int]:
    found = model.generation_config.eos_token_id
    return [] if found is None else found if isinstance(found, list) else [found]
