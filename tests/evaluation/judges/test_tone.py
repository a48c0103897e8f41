"""`judge=[tone]`: each count against one made by hand, spread across paraphrases, and the verb that prints them."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import pytest

from dpo.evaluation.judge_file import judge_responses
from dpo.evaluation.judges.interface import Item
from dpo.evaluation.judges.tone import ToneStatistics, measure, syllables
from dpo.evaluation.responses import read_responses
from dpo.evaluation.summary.figures import one_side

INTERVAL = {"resamples": 200, "confidence": 0.95, "seed": 0}
FORMATTED = """# Fruit

Perhaps the **best** fruit is the apple. I think so!

- Red apples
- Green apples
1. One pear

```python
# might = not prose
print("**no** bold")
```
"""


def test_counts_are_those_made_by_hand() -> None:
    found = measure(FORMATTED)
    assert (found["headings"], found["list_lines"], found["bold"], found["code"]) == (1, 3, 1, 1)
    # Prose: Fruit / Perhaps .. apple (7 words) / I think so / Red apples / Green apples / One pear.
    assert found["sentence_words"] == pytest.approx(17 / 6)
    assert found["hedges"] == pytest.approx(100 * 2 / 17)
    # With those of the code: python, might, not, prose, print, no, bold.
    assert found["words"] == 30, "as everywhere, what stands between spaces"


def test_reading_ease_is_flesch() -> None:
    # 6 words of one syllable in one sentence.
    assert measure("The cat sat on the mat.")["reading_ease"] == pytest.approx(206.835 - 1.015 * 6 - 84.6)
    harder = measure("Institutional accountability necessitates comprehensive documentation.")["reading_ease"]
    assert harder is not None
    assert harder < 0


@pytest.mark.parametrize(
    ("word", "count"), [("cat", 1), ("make", 1), ("table", 2), ("banana", 3), ("tree", 1), ("the", 1), ("2", 1)]
)
def test_syllables(word: str, count: int) -> None:
    assert syllables(word) == count


@pytest.mark.parametrize(
    ("text", "hedges"),
    [("It may rain.", 1), ("In May it rains.", 0), ("Mighty oaks", 0), ("I\u2019m not sure it does", 1)],
)
def test_hedges_are_whole_words(text: str, hedges: int) -> None:
    found = measure(text)
    assert found["hedges"] is not None
    assert found["words"] is not None
    assert found["hedges"] * found["words"] / 100 == pytest.approx(hedges)


@pytest.mark.parametrize("text", ["", "  \n", "```\ncode\n```", "\u4f60\u597d", "...", "\ud800"])
def test_what_is_no_prose_is_measured_without_error(text: str) -> None:
    found = measure(text)
    assert set(found) == set(measure("A cat."))


def test_spread_is_within_groups_of_two_or_more() -> None:
    lengths = {"a": [1, 4, 7], "b": [2, 2], "c": [50]}
    items = [
        Item(f"{group}{i}", (), "cat " * n, group=group) for group, ns in lengths.items() for i, n in enumerate(ns)
    ]
    judge = ToneStatistics()
    found = [v for batch in judge.judge(items) for v in batch]
    rows = {row["key"]: row["policy"] for row in one_side(judge, items, found, INTERVAL)}
    assert rows["words_spread"]["value"] == pytest.approx((statistics.stdev([1, 4, 7]) + 0) / 2)
    alone = one_side(judge, items[-1:], found[-1:], INTERVAL)
    assert not any(row["key"].endswith("_spread") for row in alone)


def test_a_file_of_paraphrases_gives_figures_and_no_ranking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DPO_CACHE", str(tmp_path / "cache"))
    rows = [
        {"prompt": "Name a fruit.", "group": "fruit", "response": "An apple."},
        {"prompt": "Say a fruit's name.", "group": "fruit", "response": "Perhaps a pear, or a plum."},
    ]
    path = tmp_path / "responses.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    summary, verdicts = judge_responses(
        ToneStatistics(), read_responses(path, None, None, [], None), "passed", INTERVAL
    )
    found = {row["key"]: row["policy"]["value"] for row in summary["figures"]}
    assert found["words_spread"] == pytest.approx(statistics.stdev([2, 6]))
    assert "level" not in found
    assert "no judgement of tone" in summary["definition"]
    assert len(verdicts) == 2
