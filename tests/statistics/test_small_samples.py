"""Few pairs, prompts or seeds promise little: no share is certain, no interval leaves what is possible."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hostile import write_run

from dpo.evaluation.pairs import PairRow, summarise_pairs
from dpo.pages.finding import GOOD, UNKNOWN
from dpo.pages.findings import findings
from dpo.pages.tables import number, share
from dpo.records.read import read_run, read_summary
from dpo.statistics.intervals import bootstrap_mean, bootstrap_share, compare_scores, wilson
from dpo.statistics.length_control import length_controlled_win_rate
from dpo.statistics.paired import seeds_and_items
from dpo.sweeps import answer


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_all_of_few_is_wilsons_interval(value: float) -> None:
    found = bootstrap_share([value] * 4)
    known = wilson(4 * value, 4)
    assert (found.low, found.high) == pytest.approx((known.low, known.high))
    assert share(found.__dict__) == ("0% [0, 49]" if value == 0 else "100% [51, 100]")


def test_where_many_groups_differ_it_is_the_bootstrap() -> None:
    values = [1.0, 0.0, 1.0, 1.0, 1.0] * 6
    assert bootstrap_share(values) == bootstrap_mean(values)


def test_of_few_trials_it_is_wilsons_interval() -> None:
    """5 of 7 are not all of them, which resampling seven calls possible."""
    found, known = bootstrap_share([1.0] * 5 + [0.0] * 2), wilson(5, 7)
    assert (found.low, found.high) == pytest.approx((known.low, known.high))
    assert share(found.__dict__) == "71% [36, 92]"


def test_few_groups_of_several_trials_count_as_far_as_they_differ() -> None:
    """Copies of one trial are no further evidence; trials within groups that differ freely are."""
    groups = [number // 4 for number in range(40)]
    copies = bootstrap_share([float(group % 2) for group in groups], groups)
    assert (copies.low, copies.high) == pytest.approx((wilson(5, 10).low, wilson(5, 10).high))
    spread = bootstrap_share([float(number % 3 == 0) for number in range(40)], groups)
    assert spread.high - spread.low < wilson(14, 40).high - wilson(14, 40).low


def test_ties_alone_and_wins_alone_are_not_certain_at_equal_length() -> None:
    for outcome, shown in (([0.5] * 14, "50% [39, 61]"), ([1.0] * 4, "99% [51, 100]")):
        found = length_controlled_win_rate(outcome, list(range(len(outcome))), resamples=200)
        assert share(found.__dict__) == shown


def test_one_alone_has_no_interval() -> None:
    assert number({"value": 0.07, "low": 0.07, "high": 0.07, "n": 1}) == "0.07"
    assert share(wilson(1, 1).__dict__) == "100% [21, 100]"


def test_runs_that_say_the_same_are_told_apart_by_nothing() -> None:
    """A difference of 0 on few prompts keeps a width, in comparisons and in sweeps."""
    same = np.zeros((1, 6))
    assert seeds_and_items(same, range(6), 200, 0.95, 0).low == 0
    found = seeds_and_items(same, range(6), 200, 0.95, 0, (-1.0, 1.0))
    assert found.low < 0 < found.high


def test_a_difference_of_nothing_on_few_prompts_keeps_a_width() -> None:
    found = compare_scores([1.0] * 4, [1.0] * 4)
    assert not found.different
    assert found.net.low < 0 < found.net.high
    assert (found.win_rate.low, found.win_rate.high) == pytest.approx((0.255, 0.745), abs=0.01)


def test_every_share_of_held_out_pairs_has_a_width() -> None:
    rows = [PairRow(str(i), str(i), 5, 5, 1.0, -5.0, -9.0, -6.0, -7.0) for i in range(4)]
    found = summarise_pairs(rows, 0.1, 200, 0.95, 0)
    for name in ("accuracy", "accuracy_gain", "accuracy_per_token", "likelier", "likelier_before", "likelier_gain"):
        assert found[name]["low"] < found[name]["high"], name
    assert share(found["accuracy"]) == "100% [51, 100]"
    assert found["accuracy_gain"]["high"] <= 0.5


@pytest.mark.parametrize(("seeds", "shown"), [([0.9, 1.0], "95%"), ([0.9, 1.0, 1.0], "97% [82, 100]")])
def test_a_mean_over_seeds_stays_within_what_is_possible(seeds: list[float], shown: str) -> None:
    assert share(answer._mean(np.array(seeds), share=True)) == shown


def test_too_few_are_not_called_good(tmp_path: Path) -> None:
    run = write_run(tmp_path / "r", gain=0.5)
    few: Any = read_summary(run, "test")
    assert any(found.level == GOOD for found in findings(read_run(run), few)[3:])
    few["pairs"]["pairs"] = few["answers"]["prompts"] = 9
    for judged in few["judges"].values():
        judged["difference"]["n"] = 9
    few["divergence"]["answers"] = 9
    found = findings(read_run(run), few)
    assert not [one for one in found[2:] if one.level == GOOD]
    assert [one.words for one in found if one.level == UNKNOWN and "9 held-out pairs, 20 are the least" in one.words]
