"""Judges through the cache: what is asked, what is kept, both orders, damaged entries, figures; no model."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from dpo.config.judges import JUDGES, Judges
from dpo.config.parse import plain
from dpo.data.pair import Message
from dpo.evaluation.judges.ask import preferences, verdicts
from dpo.evaluation.judges.cache import VerdictCache
from dpo.evaluation.judges.interface import Figure, Item, Judge, PairItem, PairJudge, Verdict, mean_of
from dpo.evaluation.judges.table import BUILDERS, build_judges
from dpo.evaluation.summary.figures import one_side, two_sides

INTERVAL = {"resamples": 200, "confidence": 0.95, "seed": 0}


class Lengths(Judge):
    """Scores by length; counts what it is asked and can be made to fail after some batches."""

    name, label, definition, fingerprint = "lengths", "length", "characters", "1"
    figures = (
        mean_of("letters", "letters"),
        Figure("worst", "longest answer", False, lambda j: (max(len(i.answer) for i, _ in j), 1.0)),
    )

    def __init__(self, fail_after: int | None = None) -> None:
        self.asked: list[str] = []
        self.fail_after = fail_after

    def judge(self, items: Sequence[Item]) -> Iterator[list[Verdict]]:
        for number, item in enumerate(reversed(items)):
            if self.fail_after is not None and number >= self.fail_after:
                raise KeyboardInterrupt
            self.asked.append(item.answer)
            score = None if item.answer == "?" else float(len(item.answer))
            letters = sum(c.isalpha() for c in item.answer)
            details = {} if score is None else {"letters": letters}
            yield [Verdict(item.id, score, None, "unclear" if score is None else "", 0.5, "test", details)]


class Prefers(PairJudge):
    """Prefers the longer answer, except that it always likes the first when the prompt says so."""

    name, label, definition, fingerprint = "prefers", "preferred", "the longer", "1"

    def __init__(self, both_orders: bool = True) -> None:
        self.both_orders = both_orders
        self.asked: list[tuple[str, str]] = []

    def compare(self, items: Sequence[PairItem]) -> Iterator[list[Verdict]]:
        for item in items:
            self.asked.append((item.first, item.second))
            gap = 1 if item.question == "biased" else len(item.first) - len(item.second)
            score = None if "?" in item.first else 0.5 if gap == 0 else float(gap > 0)
            yield [Verdict(item.id, score, None, f"{gap}", 1.0, "test")]


def _item(name: str, answer: str, question: str = "q", group: str | None = None) -> Item:
    return Item(name, (Message("user", question),), answer, group=group)


def _pair(name: str, first: str, second: str, question: str = "q") -> PairItem:
    return PairItem(name, (Message("user", question),), first, second)


@pytest.fixture
def cache(tmp_path: Path) -> VerdictCache:
    return VerdictCache(tmp_path / "deep" / "verdicts.sqlite")


def test_equal_content_is_asked_once_and_never_again(cache: VerdictCache) -> None:
    judge = Lengths()
    items = [_item("a", "xx"), _item("b", "yyy"), _item("c", "xx"), _item("d", "xx", question="other")]
    found = verdicts(judge, items, cache)
    assert [(v.id, v.score, v.cost) for v in found] == [("a", 2, 0.5), ("b", 3, 0.5), ("c", 2, 0.5), ("d", 2, 0.5)]
    assert sorted(judge.asked) == ["xx", "xx", "yyy"]
    again = Lengths()
    assert verdicts(again, items, cache) == found
    assert again.asked == []
    assert cache.counts() == [("lengths", 3)]


def test_another_fingerprint_or_meta_is_another_verdict(cache: VerdictCache) -> None:
    verdicts(Lengths(), [_item("a", "xx")], cache)
    other = Lengths()
    other.fingerprint = "2"
    verdicts(other, [_item("a", "xx")], cache)
    assert other.asked == ["xx"]
    with_meta = [Item("a", (Message("user", "q"),), "xx", meta={"kwargs": [{}]})]
    blind, reading = Lengths(), Lengths()
    verdicts(blind, with_meta, cache)
    assert blind.asked == []
    reading.reads = ("kwargs",)
    verdicts(reading, with_meta, cache)
    assert reading.asked == ["xx"]


def test_a_killed_judge_is_asked_only_for_what_is_missing(cache: VerdictCache) -> None:
    items = [_item(str(n), "x" * n) for n in range(1, 6)]
    with pytest.raises(KeyboardInterrupt):
        verdicts(Lengths(fail_after=3), items, cache)
    judge = Lengths()
    assert [v.score for v in verdicts(judge, items, cache)] == [1, 2, 3, 4, 5]
    assert judge.asked == ["xx", "x"]


def test_undecided_is_not_kept(cache: VerdictCache) -> None:
    first = verdicts(Lengths(), [_item("a", "?")], cache)
    assert first[0].score is first[0].outcome is None
    judge = Lengths()
    verdicts(judge, [_item("a", "?")], cache)
    assert judge.asked == ["?"]


def test_a_damaged_entry_is_made_again(cache: VerdictCache) -> None:
    said: list[str] = []
    cache = VerdictCache(cache.path, said.append)
    items = [_item("a", "xx"), _item("b", "yyy")]
    found = verdicts(Lengths(), items, cache)
    with sqlite3.connect(cache.path) as db:
        db.execute("""UPDATE verdicts SET value = replace(CAST(value AS TEXT), '2.0', '9.0')""")
    judge = Lengths()
    assert verdicts(judge, items, cache) == found
    assert set(judge.asked) == {"xx", "yyy"}
    assert len(said) == 1
    assert "2 damaged" in said[0]


def test_a_damaged_file_is_set_aside(cache: VerdictCache) -> None:
    verdicts(Lengths(), [_item("a", "xx")], cache)
    cache.path.write_bytes(b"not a database" * 500)
    said: list[str] = []
    judge = Lengths()
    verdicts(judge, [_item("a", "xx")], VerdictCache(cache.path, said.append))
    assert judge.asked == ["xx"]
    assert len(said) == 1
    assert list(cache.path.parent.glob("*.damaged-*"))
    assert cache.counts() == [("lengths", 1)]


def test_verdicts_are_pruned_by_age(cache: VerdictCache) -> None:
    verdicts(Lengths(), [_item("a", "xx")], cache)
    assert cache.prune(3600) == 0
    assert cache.prune(0) == 1
    assert cache.counts() == []


def test_both_orders_must_agree_for_a_win(cache: VerdictCache) -> None:
    judge = Prefers()
    pairs = [
        _pair("win", "long", "x"), _pair("loss", "x", "long"), _pair("biased", "x", "long", "biased"),
        _pair("tie", "ab", "cd"), _pair("same", "z ", "z"), _pair("unclear", "?", "x"),
    ]  # fmt: skip
    found = {v.id: v for v in preferences(judge, pairs, cache)}
    scores = {"win": 1, "loss": 0, "biased": 0.5, "tie": 0.5, "same": 0.5, "unclear": None}
    assert {name: v.score for name, v in found.items()} == scores
    assert found["win"].cost == 2
    assert found["same"].cost == 0
    assert (found["biased"].details["forward"], found["biased"].details["backward"]) == (1, 0)
    assert ("z ", "z") not in judge.asked
    # Turned, "win" is "loss": each order is asked once.
    assert len(judge.asked) == 8
    rows = {r["key"]: r["policy"]["value"] for r in one_side(judge, pairs, list(found.values()), INTERVAL)}
    # Decided and asked: win, loss and tie agree; the biased one prefers what it sees first.
    assert rows["consistent"] == pytest.approx(3 / 4)
    assert rows["first_shown"] == pytest.approx((0.5 + 0.5 + 1 + 0.5) / 4)


def test_one_order_where_the_judge_wants_one(cache: VerdictCache) -> None:
    judge = Prefers(both_orders=False)
    pairs = [_pair("a", "long", "x"), _pair("b", "x", "long")]
    assert [v.score for v in preferences(judge, pairs, cache)] == [1, 0]
    assert len(judge.asked) == 2
    assert one_side(judge, pairs, preferences(judge, pairs, cache), INTERVAL) == []


def test_figures_are_ratios_over_groups(cache: VerdictCache) -> None:
    judge = Lengths()
    mine = [_item("a", "xx", group="g"), _item("b", "x1x4", group="g"), _item("c", "y"), _item("d", "?", "none")]
    base = [_item("e", "x", group="g"), _item("f", "x", group="g"), _item("g", "yy"), _item("h", "?", "none")]
    rows = {r["key"]: r for r in two_sides(judge, [*mine, *base], verdicts(judge, [*mine, *base], cache), INTERVAL)}
    assert rows["letters"]["policy"]["value"] == pytest.approx((2 + 2 + 1) / 3)
    assert rows["letters"]["baseline"]["value"] == pytest.approx((1 + 1 + 2) / 3)
    assert rows["letters"]["difference"]["value"] == pytest.approx(1 / 3)
    assert rows["worst"]["policy"]["value"] == pytest.approx((4 + 1) / 2)
    difference = rows["worst"]["difference"]
    assert difference["value"] == pytest.approx(1.0)
    assert difference["low"] <= 1 <= difference["high"]


def test_an_undecided_verdict_with_details_of_its_own_is_left_out_of_a_mean() -> None:
    judge, items = Lengths(), [_item("a", "xx"), _item("b", "?")]
    found = [
        Verdict("a", 2.0, None, "", 0.5, "test", {"letters": 2}),
        Verdict("b", None, None, "the reply could not be read", 0.5, "test", {"tokens_in": 7}),
    ]
    rows = {r["key"]: r["policy"]["value"] for r in one_side(judge, items, found, INTERVAL)}
    assert rows["letters"] == 2


def test_the_table_has_every_configured_judge() -> None:
    assert set(BUILDERS) == set(JUDGES) == set(plain(Judges()))
    assert build_judges(Judges()) == []
