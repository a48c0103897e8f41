"""Whether each text that was given stands in what a chat template made of the conversation."""

from __future__ import annotations

import re
from collections.abc import Callable

Turns = list[dict[str, str]]


def stands(text: str, rendered: str) -> bool:
    """Whether a text occurs, but for white space: templates trim, and some set a line end of their own."""
    return text.strip() in rendered or "".join(text.split()) in "".join(rendered.split())


def stands_as_given(text: str, rendered: str) -> bool:
    """Whether a text occurs with the white space inside it."""
    return text.strip() in rendered


class Coverage:
    """Finds what a template leaves out: `render` gives the text of turns up to where the model answers.

    A template may leave out a role, whatever it says, which a look for the text could miss where it is short or
    stands elsewhere too: each sequence of roles is rendered once with texts like no other. Or it may cut a text for
    what stands in it, as some do with a part between <think> and </think>: each text is looked for.
    """

    def __init__(self, render: Callable[[Turns], str]) -> None:
        self._render = render
        self._shapes: dict[tuple[str, ...], set[int]] = {}

    def lost(self, turns: Turns, rendered: str) -> set[int]:
        """Indices of turns of which something is missing in `rendered`."""
        roles = tuple(turn["role"] for turn in turns)
        if roles not in self._shapes:
            self._shapes[roles] = self._left_out(roles)
        gone = {index for index, turn in enumerate(turns) if not stands(turn["content"], rendered)}
        return gone | self._shapes[roles]

    def _left_out(self, roles: tuple[str, ...]) -> set[int]:
        rendered = self._render([{"role": role, "content": f"Text {i} of many."} for i, role in enumerate(roles)])
        found = {int(number) for number in re.findall(r"Text (\d+) of many\.", rendered)}
        return set(range(len(roles))) - found
