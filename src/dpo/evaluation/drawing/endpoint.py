"""Answers from an OpenAI-compatible server, for models too large to load here: vLLM serves base and adapter alike."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

from dpo.config.evaluation import Endpoint, Evaluation
from dpo.data.pair import Extras, Message, ToolCall
from dpo.data.sources.fields import as_text
from dpo.data.sources.messages import message_dict
from dpo.errors import ConfigError, NetworkError
from dpo.evaluation.answers import Asked, Drawer, Prompt
from dpo.evaluation.sides import POLICY


def endpoint_drawer(endpoint: Endpoint, config: Evaluation, stops: Mapping[int, str]) -> Drawer:
    """Ask `endpoint.policy` and `endpoint.baseline` at `endpoint.base_url`; the client retries what may pass.

    The seed of each request is sent; whether it is honoured is the server's business.

    Args:
        stops: the tokens that end an answer and their texts; a server may know fewer than training taught.
    """
    try:
        import openai
    except ModuleNotFoundError:
        raise ConfigError("evaluation.endpoint: needs the openai client: pip install 'dpo-train[endpoint]'") from None

    client = openai.OpenAI(
        base_url=endpoint.base_url,
        api_key=os.environ.get(endpoint.key_variable) or "none",
        timeout=endpoint.timeout,
        max_retries=5,
    )

    def ask(side: str, prompt: Prompt, number: int) -> dict[str, Any]:
        reply = client.chat.completions.create(
            model=str(endpoint.policy if side == POLICY else endpoint.baseline),
            messages=[message_dict(m) for m in prompt.messages],  # type: ignore[misc]
            temperature=config.temperature,
            max_tokens=config.max_new_tokens,
            seed=config.seed * 1000 + number,
            tools=json.loads(prompt.tools) if prompt.tools else openai.omit,
            # vLLM's word for control tokens; others read texts, four at most, and see control tokens as text.
            stop=sorted(stops.values())[:4],
            extra_body={"stop_token_ids": sorted(stops)} | ({"top_k": config.top_k} if config.temperature > 0 else {}),
        )
        choice = reply.choices[0]
        return {
            "answer": said(choice.message),
            "ids": None,
            "tokens": reply.usage.completion_tokens if reply.usage else 0,
            "finished": choice.finish_reason == "stop",
        }

    def draw(
        side: str, asked: Asked, progress: Callable[[int], None]
    ) -> Iterator[tuple[list[int], list[dict[str, Any]]]]:
        with ThreadPoolExecutor(endpoint.concurrency) as pool:
            jobs = {pool.submit(ask, side, prompt, number): i for i, (prompt, number) in enumerate(asked)}
            try:
                for job in as_completed(jobs):
                    yield [jobs[job]], [job.result()]
                    progress(1)
            except openai.OpenAIError as error:
                pool.shutdown(wait=False, cancel_futures=True)
                raise NetworkError(
                    f"evaluation.endpoint {endpoint.base_url}: {type(error).__name__}: {str(error).splitlines()[0]}\n"
                    "what was answered is kept; the same command asks for the rest"
                ) from None

    return draw


def said(message: Any) -> str:
    """All that a server's message says: its reasoning and calls, which servers part from the text, stand in it."""
    calls = tuple(ToolCall(call.function.name, call.function.arguments, True) for call in message.tool_calls or ())
    reasoning = getattr(message, "reasoning_content", None) or getattr(message, "reasoning", None) or ""
    return as_text(Message("assistant", message.content or "", Extras(calls, reasoning=reasoning)))
