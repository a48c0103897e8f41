"""The judge model behind one interface: a server that speaks OpenAI's protocol, or a model loaded here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from dpo.evaluation.judges.rubric import Question


@dataclass(frozen=True)
class Reply:
    """What came back: the text, or why there is none. `final`: asking again would not help.

    `prompt_tokens` and `completion_tokens` are what was spent on it, as the server or the tokenizer counts.
    """

    text: str | None
    refusal: str = ""
    final: bool = False
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Chat(Protocol):
    """`identity` says which model answers and how it draws: part of every cache key and of the provenance.

    `workers`: how many questions are worth asking at once.
    """

    identity: str
    workers: int

    def ask(self, questions: Sequence[Question]) -> Iterator[tuple[int, Reply]]:
        """Yield (index of the question, reply) as they come; raises NetworkError when nothing more can be had."""
