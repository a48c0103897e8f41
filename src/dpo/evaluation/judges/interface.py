"""What a judge is: items in; verdicts with score, reason, cost and provenance out.

To add a judge NAME:

1. a dataclass of its settings in `dpo/config/judges.py`, a field NAME of `Judges` and an entry of `JUDGES`;
2. `conf/judge/NAME.yaml` with the values (`defaults: [base_NAME, _self_]`, then `NAME:` and its keys);
3. one file here with a subclass of `Judge` (one answer at a time), `PairJudge` (two answers to one prompt) or
   `Benchmark` (the models themselves), and a function settings -> judge;
4. that function in `BUILDERS` of `table.py`.

The builder raises ConfigError for what cannot work (a package that is missing, a key that is not set) and loads
nothing heavy: it runs before the models do. Models are loaded in the first call of `judge` or `compare`.

A judge is only ever asked through `ask.verdicts`, which looks into the cache first, asks once for items of equal
content, stores each batch as it is yielded and shows progress. So a judge needs no cache, no retry of a killed
evaluation and no progress of its own. For a pair judge it also asks for both orders and puts them together.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dpo.data.pair import Message
from dpo.data.sources.fields import as_text


@dataclass(frozen=True)
class Item:
    """One answer to judge. `id` is unique in a call.

    `finished`: the model ended its turn itself. `subject` is what the prompt is about, where that is known. `group`
    holds together what is not independent (samples of one prompt, paraphrases of it); None: the prompt's own text.
    `meta` is what else the prompt came with, such as IFEval's instruction ids; a judge names the keys it reads.
    `tools` are those the model could call, as JSON text.
    """

    id: str
    prompt: tuple[Message, ...]
    answer: str
    finished: bool = True
    subject: str | None = None
    group: str | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)
    tools: str = ""

    @property
    def question(self) -> str:
        """The last user turn; "" without a prompt."""
        return last_user_turn(self.prompt)

    @property
    def asked(self) -> tuple[Message, ...]:
        """The prompt as it is shown."""
        return _asked(self.prompt, self.tools)

    def content(self, reads: Sequence[str]) -> list[Any]:
        """All that a verdict may hang on, as JSON-able data: the item without `id`, `group` and unread `meta`."""
        return [_turns(self.asked), self.answer, self.finished, self.subject, _read(self.meta, reads)]


@dataclass(frozen=True)
class PairItem:
    """Two answers to one prompt, in the order to show them; see `Item` for the other fields."""

    id: str
    prompt: tuple[Message, ...]
    first: str
    second: str
    group: str | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)
    tools: str = ""

    @property
    def question(self) -> str:
        """The last user turn; "" without a prompt."""
        return last_user_turn(self.prompt)

    @property
    def asked(self) -> tuple[Message, ...]:
        """The prompt as it is shown."""
        return _asked(self.prompt, self.tools)

    def content(self, reads: Sequence[str]) -> list[Any]:
        """All that a verdict may hang on, as JSON-able data: the item without `id`, `group` and unread `meta`."""
        return [_turns(self.asked), self.first, self.second, _read(self.meta, reads)]

    @property
    def turned(self) -> PairItem:
        """The same with the answers in the other order."""
        return PairItem(self.id, self.prompt, self.second, self.first, self.group, self.meta, self.tools)


def _turns(prompt: Sequence[Message]) -> list[list[str]]:
    return [[m.role, as_text(m)] for m in prompt]


def _asked(prompt: tuple[Message, ...], tools: str) -> tuple[Message, ...]:
    return (Message("tools", tools), *prompt) if tools else prompt


def _read(meta: Mapping[str, Any], reads: Sequence[str]) -> dict[str, Any]:
    return {key: meta[key] for key in reads if key in meta}


def last_user_turn(prompt: Sequence[Message]) -> str:
    """The text of the last user turn, else of the last turn; "" for an empty prompt."""
    turns = [m.content for m in prompt if m.role == "user"] or [m.content for m in prompt]
    return turns[-1] if turns else ""


@dataclass(frozen=True)
class Verdict:
    """What a judge found about the item of that `id`.

    `score`: in the judge's own unit, higher is better. Of a pair judge: 1 the first answer is better, 0.5 a tie, 0
    the second. None: undecided, and `reason` says why (the service failed, the reply could not be read, the check
    needs what is not installed). Undecided items are left out of every figure and counted; they are not cached, so
    the next evaluation asks again.
    `passed`: for judges that decide yes or no, else None. `reason`: words; for judges that decide, the failed facets
    divided by ", " (they are counted). `cost`: money, in the currency of the judge's price list; 0 for local judges.
    `provenance`: what decided, such as a model and its revision. `details`: further numbers and words, JSON-able,
    such as the scores of a rubric; `Judge.figures` reads them.
    """

    id: str
    score: float | None
    passed: bool | None
    reason: str
    cost: float
    provenance: str
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def outcome(self) -> float | None:
        """What two answers to one prompt are compared by: the decision where there is one, else the score."""
        return self.score if self.passed is None else float(self.passed)


Judged = Sequence[tuple[Any, Verdict]]
"""Items, or PairItems, with their verdicts."""


@dataclass(frozen=True)
class Figure:
    """A further figure of a judge: a ratio of two sums over groups, measured on each side with an interval.

    `parts` gives a group's (numerator, denominator) from its verdicts, those left out that have neither score nor
    details; (0, 0) where it has none: a mean of a
    detail over answers is (its sum, the number of answers); a mean over prompts of the worst answer is (the worst, 1).
    A group is what `Item.group` holds together, else the answers to one prompt. `share`: shown in per cent.
    """

    key: str
    label: str
    share: bool
    parts: Callable[[Judged], tuple[float, float]]


def mean_of(key: str, label: str, share: bool = False) -> Figure:
    """The mean over answers of `details[key]` (a number, or None where it is not defined)."""

    def parts(judged: Judged) -> tuple[float, float]:
        # An undecided verdict may tell of its cost and tokens, and of nothing that was judged.
        values = [found for _, v in judged if (found := v.details.get(key)) is not None]
        return float(sum(values)), float(len(values))

    return Figure(key, label, share, parts)


class _Named(ABC):
    """What all judges have.

    `name` as in conf/judge. `label` names the main figure in tables, `definition` is printed beside it and says what
    is measured and what is not. `fingerprint` is part of each cache key: put in all that a verdict hangs on besides
    the item (model and revision, the text of the rubric, thresholds, version of a rule), and nothing else. `reads`:
    the keys of `Item.meta` it looks at.
    """

    name: str
    label: str
    definition: str
    fingerprint: str
    reads: tuple[str, ...] = ()
    figures: tuple[Figure, ...] = ()


class Judge(_Named):
    """Judges answers one by one. `ranks` is False for judges that only describe: no wins and losses are counted."""

    ranks: bool = True

    @abstractmethod
    def judge(self, items: Sequence[Item]) -> Iterator[list[Verdict]]:
        """Yield verdicts in batches, as they are made, in any order: exactly one an item, matched by id.

        What is yielded is kept although a later batch fails, so small batches lose little. Failures of one item are
        undecided verdicts; raise a DpoError only when nothing more can be judged.
        """


class PairJudge(_Named):
    """Prefers one of two answers. `both_orders`: each pair is asked twice, the second time with the answers turned.

    Of two orders, the pair's verdict is a win only where both prefer the same answer, else a tie (MT-Bench,
    arXiv:2306.05685, section 3.4); its details hold the two scores, both from the first answer's side, as `forward`
    and `backward` besides the details of the forward verdict. Equal answers are a tie without being asked.
    """

    both_orders: bool = True

    @abstractmethod
    def compare(self, items: Sequence[PairItem]) -> Iterator[list[Verdict]]:
        """Yield verdicts on the pairs exactly as they are shown; otherwise as `Judge.judge`. `passed` stays None."""


@dataclass(frozen=True)
class Measured:
    """One figure of a benchmark on one side: value, standard error (None: not known), whether it is a share, on `n`
    samples; `higher_is_better` as the benchmark says, None where it does not. `values`: what `value` is the mean of,
    one a question and in one order on both sides; None where it is no such mean."""

    key: str
    label: str
    value: float
    error: float | None
    n: int
    share: bool
    higher_is_better: bool | None = True
    values: list[float] | None = None


class Benchmark(_Named):
    """Measures a model instead of given answers."""

    @abstractmethod
    def measure(self, model: Any, tokenizer: Any, side: str) -> list[Measured]:
        """The figures of a loaded model; called once for each side of a run, which progress names."""


AnyJudge = Judge | PairJudge | Benchmark


def ranks(judge: Judge | PairJudge) -> bool:
    """Whether the judge says which answer is better."""
    return isinstance(judge, PairJudge) or judge.ranks
