"""Judge models behind an OpenAI-compatible server: vLLM, Ollama, `transformers serve`, any provider.

The openai client retries what may pass (time-outs, broken connections, 408, 409, 429, 5xx), with growing pauses or
the pause the server asks for. The transport below adds what it lacks: a pace, a bound on the whole time of a try and
on the size of a reply, so that no server can hold a judge for ever or fill its memory.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

import httpx2
import openai

from dpo.config.judges import JudgeServer, Structured
from dpo.errors import ConfigError, NetworkError
from dpo.evaluation.judges.chat import Reply
from dpo.evaluation.judges.rubric import Question
from dpo.records.redaction import redact

LARGEST_REPLY = 2**21  # bytes; a verdict has a few hundred
LONGEST_PAUSE = 120.0  # seconds; the client honours no longer Retry-After either


class Pace:
    """At most `per_minute` requests a minute, evenly spaced over all threads; `hold` stops all of them for a while."""

    def __init__(
        self,
        per_minute: float | None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._gap = 60 / per_minute if per_minute else 0.0
        self._clock, self._sleep = clock, sleep
        self._lock = threading.Lock()
        self._next = 0.0

    def wait(self) -> None:
        """Return when this thread may send."""
        with self._lock:
            now = self._clock()
            start = max(now, self._next)
            self._next = start + self._gap
        if start > now:
            self._sleep(start - now)

    def hold(self, seconds: float) -> None:
        """Nobody sends for that long."""
        with self._lock:
            self._next = max(self._next, self._clock() + min(seconds, LONGEST_PAUSE))


class BoundedTransport(httpx2.HTTPTransport):
    """Sends at a pace; a reply that takes longer than `timeout` seconds in all or is too large counts as broken."""

    def __init__(self, pace: Pace, timeout: float) -> None:
        super().__init__()
        self._pace, self._timeout = pace, timeout

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        """See httpx."""
        self._pace.wait()
        until = time.monotonic() + self._timeout
        response = super().handle_request(request)
        pause = response.headers.get("retry-after", "")
        if response.status_code in (429, 503) and pause.replace(".", "", 1).isdigit():
            self._pace.hold(float(pause))
        if response.headers.get("content-encoding", "identity") != "identity":
            response.close()
            raise httpx2.ReadError("the reply is compressed, which was not asked for", request=request)
        assert isinstance(response.stream, httpx2.SyncByteStream)
        response.stream = _Bounded(response.stream, request, until)
        return response


class _Bounded(httpx2.SyncByteStream):
    def __init__(self, inner: httpx2.SyncByteStream, request: httpx2.Request, until: float) -> None:
        self._inner, self._request, self._until = inner, request, until

    def __iter__(self) -> Iterator[bytes]:
        size = 0
        for chunk in self._inner:
            size += len(chunk)
            if size > LARGEST_REPLY:
                raise httpx2.ReadError(f"a reply of more than {LARGEST_REPLY} bytes", request=self._request)
            if time.monotonic() > self._until:
                raise httpx2.ReadTimeout("the reply took too long", request=self._request)
            yield chunk

    def close(self) -> None:
        self._inner.close()


class ServerChat:
    """Asks `config.model` at `config.base_url`."""

    def __init__(self, config: JudgeServer, temperature: float, max_tokens: int) -> None:
        self._config, self._temperature, self._max_tokens = config, temperature, max_tokens
        self._structured = config.structured is not Structured.never
        self.workers = config.concurrency
        self.identity = f"{config.model} at {config.base_url}, temperature {temperature:g}"
        key = os.environ.get(config.key_variable)
        if key is None and not _is_local(config.base_url):
            raise ConfigError(
                f"judge.llm.server: the environment variable {config.key_variable} is not set\n"
                f"set it to your key for {config.base_url}, or name another with judge.llm.server.key_variable=NAME"
            )
        self._client = openai.OpenAI(
            base_url=config.base_url,
            api_key=key or "none",
            max_retries=config.retries,
            http_client=openai.DefaultHttpxClient(
                transport=BoundedTransport(Pace(config.requests_per_minute), config.timeout),
                timeout=config.timeout,
                headers={"Accept-Encoding": "identity"},
                follow_redirects=False,
            ),
        )

    def ask(self, questions: Sequence[Question]) -> Iterator[tuple[int, Reply]]:
        """See Chat. What was under way when a request failed for good is still yielded: it has been paid for."""
        pool = ThreadPoolExecutor(self._config.concurrency)
        jobs = {pool.submit(self._one, question): index for index, question in enumerate(questions)}
        failure: openai.OpenAIError | None = None
        try:
            for job in as_completed(jobs):
                if job.cancelled():
                    continue
                if (error := job.exception()) is None:
                    yield jobs[job], job.result()
                elif not isinstance(error, openai.OpenAIError):
                    raise error
                elif failure is None:
                    failure = error
                    for other in jobs:
                        other.cancel()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
        if failure is not None:
            raise NetworkError(
                f"judge.llm.server {self._config.base_url}: {_words(failure)}\n"
                "what was judged is kept; the same command asks for the rest"
            )

    def _one(self, question: Question) -> Reply:
        structured = self._structured
        try:
            return self._reply(self._send(question, structured))
        except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
            if structured and self._config.structured is Structured.auto and _about_format(error):
                self._structured = False
                return self._one(question)
            return Reply(None, f"the server refused: {_words(error)}", final=True)
        except openai.APIStatusError as error:
            if error.status_code == 413:
                return Reply(None, "the server refused: too large", final=True)
            raise

    def _send(self, question: Question, structured: bool) -> Any:
        more: dict[str, Any] = {}
        if structured:
            schema = {"name": "verdict", "strict": True, "schema": question.schema}
            more["response_format"] = {"type": "json_schema", "json_schema": schema}
        try:
            return self._client.chat.completions.create(
                model=str(self._config.model),
                messages=[{"role": m.role, "content": m.content} for m in question.messages],  # type: ignore[misc]
                temperature=self._temperature,
                max_tokens=self._max_tokens,
                seed=question.seed,
                **more,
            )
        except (ValueError, TypeError) as error:
            # Announced as JSON, and is none.
            return f"not JSON: {str(error).splitlines()[0]}"

    def _reply(self, found: Any) -> Reply:
        choices = getattr(found, "choices", None)
        usage = getattr(found, "usage", None)
        tokens = [getattr(usage, f"{part}_tokens", None) or 0 for part in ("prompt", "completion")]

        def reply(text: str | None, refusal: str = "") -> Reply:
            return Reply(text, refusal, False, *tokens)

        message = getattr(choices[0], "message", None) if isinstance(choices, list) and choices else None
        if message is None:
            return reply(None, "the server's reply is no chat completion")
        if refused := getattr(message, "refusal", None):
            return reply(None, f"the model declined: {str(refused)[:200]}")
        text = getattr(message, "content", None)
        if not isinstance(text, str) or not text.strip():
            return reply(None, "the model's reply is empty")
        return reply(text)


def _about_format(error: openai.APIStatusError) -> bool:
    words = str(error).lower()
    return any(name in words for name in ("response_format", "json_schema", "structured", "guided", "unexpected field"))


def _words(error: openai.OpenAIError) -> str:
    text = str(error).strip().splitlines() or [""]
    cause = error.__cause__
    more = f" ({type(cause).__name__}: {cause})" if isinstance(error, openai.APIConnectionError) and cause else ""
    return redact(f"{type(error).__name__}: {text[0][:200]}{more}")


def _is_local(url: str | None) -> bool:
    host = httpx2.URL(url or "").host
    return host in ("localhost", "::1") or host.startswith("127.")
