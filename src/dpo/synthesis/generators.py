"""Where answers come from: a model loaded here, or one behind an OpenAI-compatible server."""

from __future__ import annotations

import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from typing import Any

from dpo.config.synthesize import GeneratorEndpoint, SamplingConfig, Synthesize
from dpo.data.synthetic.prompts import Prompt
from dpo.errors import ConfigError, NetworkError
from dpo.evaluation.drawing.endpoint import said
from dpo.records.redaction import redact

# (index, {answer, tokens, finished, cost}) of each answer that is done.
Drawn = list[tuple[int, dict[str, Any]]]


class Generator(ABC):
    """`provenance` goes into every row; answers hang on it, the sampling, the seed and the prompts."""

    provenance: dict[str, Any]

    @abstractmethod
    def draw(self, asked: Sequence[Prompt], done: set[int], progress: Callable[[int], None]) -> Iterator[Drawn]:
        """Answer `asked` (a prompt stands there once an answer), leaving out indices in `done`; in any order.

        What is yielded is kept although a later request fails. `progress` is told how many answers have just ended.
        """


class LocalGenerator(Generator):
    """A causal language model loaded here. Batches are those of the whole list, so a resumed run draws the same."""

    def __init__(self, config: Synthesize) -> None:
        from dpo.modeling.weights import resolve

        self._config = config
        named = resolve(config.generator.path, config.generator.revision, config.generator.trust_remote_code)
        self._weights = replace(named, key="generator.path")
        self.provenance = {
            "generator": config.generator.path,
            "generator_revision": self._weights.revision or self._weights.fingerprint,
        }

    def draw(self, asked: Sequence[Prompt], done: set[int], progress: Callable[[int], None]) -> Iterator[Drawn]:
        """See Generator. Cost is device time, shared evenly by the answers of a batch."""
        from dpo.data.pair import Message
        from dpo.data.tokens import Encoder
        from dpo.generation.sampling import Sampling, sample
        from dpo.modeling.device import choose_compute
        from dpo.modeling.policy import load_base, templates
        from dpo.modeling.tokenizer import load_tokenizer, stop_tokens

        hardware, sampling = self._config.hardware, self._config.sampling
        compute = choose_compute(hardware.device, hardware.precision)
        tokenizer = load_tokenizer(
            self._weights.folder, self._config.generator.chat_template, templates(), self._weights.remote_code
        )
        model = load_base(self._weights, None, compute, hardware.attention).eval()
        encoder = Encoder(tokenizer, 2**20)
        ids = [encoder.encode_prompt([Message("user", prompt.text)]) for prompt in asked]
        order = sorted(range(len(ids)), key=lambda i: (len(ids[i]), i))  # as `sample` takes them
        whole = 0
        while whole < len(order) and done.issuperset(order[whole : whole + sampling.batch_size]):
            whole += sampling.batch_size
        drawing = Sampling(sampling.temperature, sampling.top_k, sampling.max_new_tokens, self._config.seed)
        stops = stop_tokens(model, tokenizer, encoder.end_id)
        batches = sample(
            model,
            ids,
            drawing,
            stops,
            tokenizer.pad_token_id,
            sampling.batch_size,
            skip=whole // sampling.batch_size,
            on_end=progress,
        )
        start = time.monotonic()
        for indices, answers in batches:
            now = time.monotonic()
            cost = (now - start) / 3600 * hardware.hourly_rate / len(indices)
            start = now
            yield [
                (
                    index,
                    {
                        "answer": tokenizer.decode(answer.ids),
                        "tokens": len(answer.ids),
                        "finished": answer.finished,
                        "cost": cost,
                    },
                )
                for index, answer in zip(indices, answers, strict=True)
                if index not in done
            ]


class EndpointGenerator(Generator):
    """A model behind a server. Each request carries a seed of its own; whether it is honoured is the server's business.

    The client retries what may pass. A prompt the server refuses is an answer with an `error`, never asked again;
    anything else ends the run with what was answered kept.
    """

    def __init__(self, endpoint: GeneratorEndpoint, sampling: SamplingConfig, seed: int) -> None:
        try:
            import openai
        except ModuleNotFoundError:
            raise ConfigError(
                "generator=endpoint: needs the openai client: pip install 'dpo-train[endpoint]'"
            ) from None
        self._openai = openai
        self._endpoint, self._sampling, self._seed = endpoint, sampling, seed
        self._client = openai.OpenAI(
            base_url=endpoint.base_url,
            api_key=os.environ.get(endpoint.key_variable) or "none",
            timeout=endpoint.timeout,
            max_retries=endpoint.retries,
        )
        self.provenance = {"generator": endpoint.name, "generator_revision": redact(endpoint.base_url)}

    def draw(self, asked: Sequence[Prompt], done: set[int], progress: Callable[[int], None]) -> Iterator[Drawn]:
        """See Generator. What is under way when a request fails for good is still yielded: it is paid for."""
        pool = ThreadPoolExecutor(self._endpoint.concurrency)
        jobs = {pool.submit(self._ask, p.text, i): i for i, p in enumerate(asked) if i not in done}
        failure: Exception | None = None
        try:
            for job in as_completed(jobs):
                if job.cancelled():
                    continue
                try:
                    drawn = job.result()
                except self._openai.OpenAIError as error:
                    failure = failure or error
                    for other in jobs:
                        other.cancel()
                else:
                    yield [(jobs[job], drawn)]
                    progress(1)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
        if failure is not None:
            reason = redact(str(failure).splitlines()[0])[:200]
            raise NetworkError(
                f"generator.base_url={redact(self._endpoint.base_url)}: {type(failure).__name__}: {reason}\n"
                "what was answered is kept; the same command asks for the rest"
            )

    def _ask(self, prompt: str, index: int) -> dict[str, Any]:
        try:
            reply = self._client.chat.completions.create(
                model=self._endpoint.name,
                messages=[{"role": "user", "content": prompt}],
                temperature=self._sampling.temperature,
                max_tokens=self._sampling.max_new_tokens,
                seed=(self._seed + index) % 2**31,
                extra_body={"top_k": self._sampling.top_k},
            )
        except (self._openai.BadRequestError, self._openai.UnprocessableEntityError) as error:
            reason = redact(str(error).splitlines()[0])[:200]
            return {"answer": "", "tokens": 0, "finished": False, "cost": 0.0, "error": reason}
        choice, usage = reply.choices[0], reply.usage
        read, written = (usage.prompt_tokens, usage.completion_tokens) if usage else (0, 0)
        cost = (read * (self._endpoint.price_in or 0.0) + written * (self._endpoint.price_out or 0.0)) / 1e6
        return {
            "answer": said(choice.message),
            "tokens": written,
            "finished": choice.finish_reason == "stop",
            "cost": cost,
        }


def build_generator(config: Synthesize) -> Generator:
    """The generator a config asks for; loads no weights yet."""
    if isinstance(config.generator, GeneratorEndpoint):
        return EndpointGenerator(config.generator, config.sampling, config.seed)
    return LocalGenerator(config)
