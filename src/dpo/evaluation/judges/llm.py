"""`judge=[llm]`: a language model compares answers in both orders and grades them by a rubric.

A reply that holds no verdict is asked for again with another seed, then the item is undecided and says why; nothing
is ever guessed from it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from dpo.config.judges import LlmJudge, Protocol
from dpo.errors import ConfigError
from dpo.evaluation.judges import rubric
from dpo.evaluation.judges.chat import Chat, Reply
from dpo.evaluation.judges.interface import AnyJudge, Figure, Item, Judge, Judged, PairItem, PairJudge, Verdict, mean_of

SEEDS = 1000  # seeds apart that repeats are, so that attempts of one never meet another


@dataclass
class _Asked:
    """One item on its way: what its repeats said so far, and what all of it has used."""

    item: Any
    wanted: int
    read: list[tuple[Any, str]] = field(default_factory=list)
    prompt_tokens: int = 0
    completion_tokens: int = 0
    failure: str | None = None

    @property
    def done(self) -> bool:
        return self.failure is not None or len(self.read) == self.wanted


class _Asking:
    """What both judges share: the chat, the rounds of attempts, the price."""

    def __init__(self, settings: LlmJudge, chat: Chat) -> None:
        self.settings, self.chat = settings, chat
        server = settings.server
        self.prices = (server.price_in, server.price_out) if server.base_url is not None else (0.0, 0.0)

    @property
    def fingerprint(self) -> str:
        """See the interface."""
        s = self.settings
        return f"{self.chat.identity}, prompts {rubric.VERSION}, {s.explain}, {s.max_tokens}, {s.repeats}, {s.seed}"

    def price_words(self) -> str:
        """What is known about the money."""
        known = all(price is not None for price in self.prices)
        return "" if known else "; prices are not given, so its cost is not known and counts as 0"

    def run(
        self,
        items: Sequence[Any],
        question: Callable[[Any, int], rubric.Question],
        read: Callable[[str], tuple[Any, str]],
    ) -> Iterator[_Asked]:
        """Yield each item when all its repeats have been read or one has failed for good."""
        s = self.settings
        # Few items a round, so that little is lost with a kill; enough to keep every worker busy.
        size = max(1, 4 * self.chat.workers // s.repeats)
        for start in range(0, len(items), size):
            asked = [_Asked(item, s.repeats) for item in items[start : start + size]]
            queue = [(one, repeat) for one in asked for repeat in range(s.repeats)]
            for attempt in range(s.attempts):
                last = attempt == s.attempts - 1
                seeds = [s.seed + SEEDS * repeat + attempt for _, repeat in queue]
                questions = [question(one.item, seed) for (one, _), seed in zip(queue, seeds, strict=True)]
                again = []
                for index, reply in self.chat.ask(questions):
                    one, repeat = queue[index]
                    finished = one.done
                    if fault := _take(one, reply, read):
                        if last or reply.final:
                            one.failure = one.failure or fault
                        else:
                            again.append((one, repeat))
                    if one.done and not finished:
                        yield one
                queue = [(one, repeat) for one, repeat in again if not one.done]
                if not queue:
                    break

    def cost(self, one: _Asked) -> float:
        """Money, 0 where a price is not known."""
        spent = (one.prompt_tokens, one.completion_tokens)
        return sum((price or 0.0) * tokens / 1e6 for price, tokens in zip(self.prices, spent, strict=True))

    def details(self, one: _Asked) -> dict[str, Any]:
        """What every verdict tells besides."""
        return {"prompt_tokens": one.prompt_tokens, "completion_tokens": one.completion_tokens}

    def undecided(self, one: _Asked) -> Verdict:
        """The verdict on an item that failed."""
        return Verdict(one.item.id, None, None, str(one.failure), self.cost(one), self.chat.identity, self.details(one))


def _take(one: _Asked, reply: Reply, read: Callable[[str], tuple[Any, str]]) -> str | None:
    """Count a reply and keep what it says; returns what is wrong with it, or None."""
    one.prompt_tokens += reply.prompt_tokens
    one.completion_tokens += reply.completion_tokens
    if reply.text is None:
        return reply.refusal
    try:
        found = read(reply.text)
    except rubric.Malformed as fault:
        return f"unreadable reply: {fault}"
    if not one.done:
        one.read.append(found)
    return None


def _orders(details: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The details of each time an item was asked about: in one order, or in both."""
    return [found for found in (details, details.get("turned", {})) if "votes" in found]


def _self_agreement(judged: Judged) -> tuple[float, float]:
    asked = [list(combinations(found["votes"], 2)) for _, v in judged for found in _orders(v.details)]
    return sum(sum(a == b for a, b in pairs) / len(pairs) for pairs in asked if pairs), float(sum(map(bool, asked)))


def _tokens(judged: Judged) -> tuple[float, float]:
    asked = [found for _, v in judged for found in _orders(v.details)]
    return float(sum(f["prompt_tokens"] + f["completion_tokens"] for f in asked)), float(len(asked))


# About the judge itself: how often a repeat of the same question gives the same verdict, and what it costs to ask.
ABOUT = (
    Figure("self_agreement", "a repeat of the same question gives the same verdict", True, _self_agreement),
    Figure("judge_tokens", "tokens the judge reads and writes a verdict", False, _tokens),
)


class LlmPairJudge(PairJudge):
    """Which of two answers is better. Score: the mean over repeats of 1, 0.5 (tie) and 0, as shown."""

    name = "llm"
    label = "preferred by the language model"
    figures = ABOUT

    def __init__(self, asking: _Asking) -> None:
        self._asking = asking
        self.fingerprint = asking.fingerprint
        self.definition = (
            f"{asking.chat.identity} is shown both answers, in both orders; a win only where both orders prefer the "
            f"same answer{asking.price_words()}"
        )

    def compare(self, items: Sequence[PairItem]) -> Iterator[list[Verdict]]:
        """See PairJudge."""
        asking, explain = self._asking, self._asking.settings.explain

        def question(item: PairItem, seed: int) -> rubric.Question:
            return rubric.compare_question(item.asked, item.first, item.second, explain, seed)

        points = {rubric.FIRST: 1.0, rubric.TIE: 0.5, rubric.SECOND: 0.0}
        for one in asking.run(items, question, rubric.read_preference):
            if one.failure is not None:
                yield [asking.undecided(one)]
                continue
            votes = [points[preferred] for preferred, _ in one.read]
            reason = one.read[0][1] or one.read[0][0]
            details = asking.details(one) | {"votes": votes}
            score = sum(votes) / len(votes)
            yield [Verdict(one.item.id, score, None, reason, asking.cost(one), asking.chat.identity, details)]


class LlmRubricJudge(Judge):
    """Four scales from 1 to 10; the score is helpfulness, the others are figures of their own."""

    name = "llm_rubric"
    label = "helpfulness (1-10) by the language model"
    figures = (
        *(mean_of(facet, f"{facet.replace('_', ' ')} (1-10)") for facet in rubric.FACETS if facet != "helpfulness"),
        *ABOUT,
    )

    def __init__(self, asking: _Asking) -> None:
        self._asking = asking
        self.fingerprint = asking.fingerprint
        self.definition = (
            f"{asking.chat.identity} grades each answer alone; 10 is best on every scale"
            f"{'' if asking.settings.repeats == 1 else f', mean of {asking.settings.repeats} repeats'}"
            f"{asking.price_words()}"
        )

    def judge(self, items: Sequence[Item]) -> Iterator[list[Verdict]]:
        """See Judge."""
        asking, explain = self._asking, self._asking.settings.explain

        def question(item: Item, seed: int) -> rubric.Question:
            return rubric.grade_question(item.asked, item.answer, explain, seed)

        for one in asking.run(items, question, rubric.read_grades):
            if one.failure is not None:
                yield [asking.undecided(one)]
                continue
            grades = {f: sum(found[f] for found, _ in one.read) / len(one.read) for f in rubric.FACETS}
            repeats = [found["helpfulness"] for found, _ in one.read]
            details = asking.details(one) | grades | {"votes": repeats}
            cost, reason = asking.cost(one), one.read[0][1]
            yield [Verdict(one.item.id, grades["helpfulness"], None, reason, cost, asking.chat.identity, details)]


def build(settings: LlmJudge) -> list[AnyJudge]:
    """One judge a protocol in `settings.ask`; raises ConfigError for what cannot work."""
    if not settings.ask:
        raise ConfigError("judge.llm.ask: empty; allowed: pairs, rubric, or both")
    asking = _Asking(settings, _chat(settings))
    table: dict[Protocol, type[LlmPairJudge] | type[LlmRubricJudge]] = {
        Protocol.pairs: LlmPairJudge,
        Protocol.rubric: LlmRubricJudge,
    }
    return [table[protocol](asking) for protocol in dict.fromkeys(settings.ask)]


def _chat(settings: LlmJudge) -> Chat:
    server = settings.server
    if server.base_url is None:
        from dpo.evaluation.judges.chat_local import LocalChat

        return LocalChat(settings.local, settings.temperature, settings.max_tokens)
    if server.model is None:
        raise ConfigError(f"judge.llm.server.model: needs the name {server.base_url} knows the judge by")
    try:
        from dpo.evaluation.judges.chat_server import ServerChat
    except ModuleNotFoundError:
        raise ConfigError("judge.llm.server: needs the openai client: pip install 'dpo-train[endpoint]'") from None
    return ServerChat(server, settings.temperature, settings.max_tokens)
