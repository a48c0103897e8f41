"""A judge model loaded here, with this project's own loading and sampling."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator, Sequence
from typing import Any

from dpo.config.judges import JudgeModel
from dpo.errors import ConfigError
from dpo.evaluation.judges.chat import Reply
from dpo.evaluation.judges.loading import resolve_judge
from dpo.evaluation.judges.rubric import Question
from dpo.modeling.tokenizer import stop_tokens

REASON = '{"reason": "'
MARGIN = 64  # tokens of room a reply needs besides its reason


class LocalChat:
    """Loads the model at the first question.

    Its replies are structured as a server's by JSON schema are: the reason is written freely, and every value is
    chosen among those the schema allows, by the model's likelihood of each (drawn from it with a temperature).
    """

    def __init__(self, config: JudgeModel, temperature: float, max_tokens: int) -> None:
        self._config, self._temperature, self._max_tokens = config, temperature, max_tokens
        self._weights = resolve_judge("judge.llm.local.path", config.path, config.revision)
        bits = None if config.quantization is None else (config.quantization.bits, str(config.quantization.type))
        more = "".join(f", {x}" for x in (config.chat_template, bits) if x is not None)
        self.identity = f"{config.path} ({self._weights.fingerprint}{more}), temperature {temperature:g}"
        self.workers = config.batch_size
        self._loaded: tuple[Any, Any, Any] | None = None

    def ask(self, questions: Sequence[Question]) -> Iterator[tuple[int, Reply]]:
        """See Chat. Control tokens typed inside a text stay text."""
        model, _, encoder = self._load()
        longest = getattr(model.config, "max_position_embeddings", None)
        fitting: dict[int, list[int]] = {}
        for index, question in enumerate(questions):
            try:
                found = encoder.encode_prompt(question.messages)
            except ConfigError as error:
                raise ConfigError(f"judge.llm.local.path={self._config.path}: {error}") from None
            if longest is not None and len(found) + self._max_tokens + MARGIN > longest:
                yield index, Reply(None, f"{len(found)} tokens to read, the model takes {longest}", final=True)
            else:
                fitting[index] = found
        for index, reason in self._reasons(questions, fitting):
            reply, written = self._choose(fitting[index], questions[index], reason)
            yield index, Reply(json.dumps(reply), "", False, len(fitting[index]), written)

    def _reasons(
        self, questions: Sequence[Question], prompts: dict[int, list[int]]
    ) -> Iterator[tuple[int, str | None]]:
        """(index, the reason the model gives, or None where none is asked for), in batches."""
        from dpo.generation.sampling import Sampling, sample

        model, tokenizer, encoder = self._load()
        yield from ((i, None) for i in prompts if "reason" not in questions[i].schema["properties"])
        asked = [i for i in prompts if "reason" in questions[i].schema["properties"]]
        ids = [prompts[i] + encoder.codec.encode(REASON) for i in asked]
        sampling = Sampling(self._temperature, len(tokenizer), self._max_tokens, 0)
        stops = stop_tokens(model, tokenizer, encoder.end_id)
        seeds = [str(questions[i].seed) for i in asked]
        batches = sample(model, ids, sampling, stops, tokenizer.pad_token_id, self._config.batch_size, row_seeds=seeds)
        for part, answers in batches:
            for i, answer in zip(part, answers, strict=True):
                text = tokenizer.decode(answer.ids, skip_special_tokens=True)
                # The reason ends where the JSON text would.
                yield asked[i], text.split('"')[0].split("\n")[0].strip()

    def _choose(self, prompt: list[int], question: Question, reason: str | None) -> tuple[dict[str, Any], int]:
        """(reply, tokens written): each value by the likelihood of the JSON text it makes, read from one cache."""
        import torch
        from transformers import DynamicCache

        model, _, encoder = self._load()
        draw = random.Random(question.seed)
        reply: dict[str, Any] = {} if reason is None else {"reason": reason}
        names = [name for name in question.schema["properties"] if name != "reason"]
        cache, read, written = DynamicCache(config=model.config), prompt, 0
        before = "{" if reason is None else f'{{"reason": {json.dumps(reason)}, '
        with torch.no_grad():
            for number, name in enumerate(names):
                options = question.schema["properties"][name]["enum"]
                end = "}" if number == len(names) - 1 else ","
                # The space belongs to what follows it, as tokenizers cut text.
                lead = encoder.codec.encode(f'{before}"{name}":')
                read, written = [*read, *lead], written + len(lead)
                ids = torch.tensor([read], device=model.device)
                first = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[0, -1]
                texts = [encoder.codec.encode(f" {json.dumps(option)}{end}") for option in options]
                scores = _log_probs(model, cache, first, texts)
                chosen = _pick(scores, self._temperature, draw)
                reply[name], read, before = options[chosen], texts[chosen], " "
                written += len(read)
        return reply, written

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


def _log_probs(model: Any, cache: Any, first: Any, texts: Sequence[list[int]]) -> list[float]:
    """Log-probability of each text after what the cache holds, whose last token gave the logits `first`."""
    import torch

    after = copy.deepcopy(cache)
    after.batch_repeat_interleave(len(texts))
    width = max(map(len, texts))
    # Padding stands to the right, where nothing that counts can see it.
    ids = torch.tensor([text + [0] * (width - len(text)) for text in texts], device=first.device)
    logits = model(input_ids=ids, past_key_values=after, use_cache=True).logits.float()
    steps = torch.cat([first.float().expand(len(texts), 1, -1), logits[:, :-1]], 1).log_softmax(-1)
    found = steps.gather(2, ids.unsqueeze(2)).squeeze(2)
    return [float(found[i, : len(text)].sum()) for i, text in enumerate(texts)]


def _pick(scores: Sequence[float], temperature: float, draw: random.Random) -> int:
    best = max(range(len(scores)), key=lambda i: scores[i])
    if temperature == 0:
        return best
    import math

    weights = [math.exp((score - scores[best]) / temperature) for score in scores]
    return draw.choices(range(len(scores)), weights)[0]
