"""What an assistant's messages are in a rendered conversation, and which of it was given to it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from dpo.data.chat.dialect import Tools, Turns
from dpo.data.pair import Spans
from dpo.data.refusal import Reason, RowRefused

NOT_A_START = (
    "the rendered prompt is not the start of the conversation: the template changes a turn once more follows, as some "
    "drop reasoning; set its switch in dataset.chat_template_kwargs or name another with model.chat_template"
)


@dataclass(frozen=True)
class Text:
    """An answer of several messages as text behind its prompt; `given` are the spans of characters between them."""

    text: str
    given: Spans
    closed: bool
    """Whether a control token ends it."""


class Answers:
    """Finds them. `render` gives the text of turns, `last_control` where its last control token starts and ends."""

    def __init__(
        self,
        render: Callable[[Turns, Tools, bool], str],
        last_control: Callable[[str], tuple[int, int] | None],
    ) -> None:
        self._render = render
        self._last_control = last_control

    def text(self, turns: Turns, prompt: str, answer: Sequence[dict[str, Any]], tools: Tools) -> Text:
        """What follows `prompt`, which is `turns` rendered, once the assistant has said all of `answer`.

        A message of the assistant ends with the last control token the template sets behind it; from there to where it
        would speak again, all is given: results, and what begins its turn. Refused when what it is asked with is not
        a start of the whole: the model would be trained after another text.
        """
        whole = self._render([*turns, *answer], tools, False)
        starts = {0: len(prompt)}
        _begins(whole, prompt)
        for index, message in enumerate(answer):
            if index and message["role"] == "assistant":
                asked = self._render([*turns, *answer[:index]], tools, True)
                _begins(whole, asked)
                starts[index] = len(asked)
        given, places = [], list(starts)
        for index, following in itertools.pairwise(places):
            own = self._render([*turns, *answer[: index + 1]], tools, False)
            _begins(own, whole[: starts[index]])
            segment = whole[starts[index] : starts[following]]
            end = _end_of(*self._closed(own[starts[index] :]), segment)
            given.append((starts[index] + end - len(prompt), starts[following] - len(prompt)))
        text, closing = self._closed(whole[len(prompt) :])
        return Text(text, tuple(given), closing > 0)

    def _closed(self, text: str) -> tuple[str, int]:
        """A message up to the end of the control token it ends with but for white space, and that token's length."""
        found = self._last_control(text)
        if found is None or text[found[1] :].strip():
            return text, 0
        return text[: found[1]], found[1] - found[0]


def _begins(whole: str, start: str) -> None:
    if not whole.startswith(start):
        raise RowRefused(Reason.template, "prompt", NOT_A_START)


def _end_of(message: str, closing: int, segment: str) -> int:
    """Where in `segment` a message ends that was rendered as the last one; its start may be another there.

    Templates set an empty <think> block, say, before the last message alone: the longest end that both share counts,
    which holds at least the `closing` characters of its last control token.
    """
    low, high = 0, len(message)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if message[middle:] in segment else (middle + 1, high)
    if len(message) - low < max(closing, 1):
        raise RowRefused(Reason.template, "chosen", "where a message of the answer ends cannot be told")
    return segment.index(message[low:]) + len(message) - low
