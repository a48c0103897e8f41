"""Agreement beyond chance against published examples and brute force."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest

from dpo.statistics.agreement import cohen_kappa, krippendorff_alpha

# Krippendorff, "Computing Krippendorff's Alpha-Reliability" (2011), section C: four observers, twelve units.
OBSERVERS = {
    "A": [1, 2, 3, 3, 2, 1, 4, 1, 2, None, None, None],
    "B": [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, None, 3],
    "C": [None, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, None],
    "D": [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, None],
}
UNITS: list[dict[str, Any]] = [
    {name: values[u] for name, values in OBSERVERS.items() if values[u] is not None} for u in range(12)
]


def test_alpha_is_the_published_one() -> None:
    nominal = krippendorff_alpha(UNITS, "nominal")
    interval = krippendorff_alpha(UNITS, "interval")
    assert nominal is not None
    assert interval is not None
    assert nominal.value == pytest.approx(0.743, abs=5e-4)
    assert interval.value == pytest.approx(0.849, abs=5e-4)
    assert nominal.n == 11  # the last unit has one rating and says nothing
    assert nominal.low < nominal.value < nominal.high


def test_kappa_is_the_textbook_one() -> None:
    # Two readers, 50 proposals: 20 both yes, 15 both no, 5 and 10 divided; (0.7 - 0.5) / 0.5.
    pairs = [("y", "y")] * 20 + [("y", "n")] * 5 + [("n", "y")] * 10 + [("n", "n")] * 15
    found = cohen_kappa([a for a, _ in pairs], [b for _, b in pairs])
    assert found is not None
    assert found.value == pytest.approx(0.4)
    assert found.low < 0.4 < found.high


def test_alpha_agrees_with_its_definition_by_brute_force() -> None:
    draw = random.Random(1)
    units = [{f"r{i}": draw.randint(1, 10) for i in range(draw.randint(1, 4))} for _ in range(30)]
    kept = [list(unit.values()) for unit in units if len(unit) >= 2]
    pooled = [value for unit in kept for value in unit]
    observed = sum(
        (a - b) ** 2 / (len(unit) - 1) for unit in kept for a, b in itertools.permutations(unit, 2)
    ) / len(pooled)  # fmt: skip
    expected = sum((a - b) ** 2 for a, b in itertools.permutations(pooled, 2)) / (len(pooled) * (len(pooled) - 1))
    found = krippendorff_alpha(units, "interval")
    assert found is not None
    assert found.value == pytest.approx(1 - observed / expected)


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    # Two raters who copy the truth with probability 0.6 and otherwise draw evenly: alpha tends to 0.36.
    hits = 0
    for seed in range(200):
        draw = random.Random(seed)
        units = []
        for _ in range(80):
            truth = draw.choice("ab")
            units.append({r: truth if draw.random() < 0.6 else draw.choice("ab") for r in ("x", "y")})
        found = krippendorff_alpha(units, "nominal", resamples=400, seed=seed)
        assert found is not None
        hits += found.low <= 0.36 <= found.high
    assert 180 <= hits <= 199


def test_units_of_one_group_are_drawn_together() -> None:
    units = [{"x": i % 2, "y": i % 2 if i % 3 else 1 - i % 2} for i in range(40)]
    alone = krippendorff_alpha(units, "nominal")
    grouped = krippendorff_alpha(units * 4, "nominal", [i % 40 for i in range(160)])
    assert alone is not None
    assert grouped is not None
    assert grouped.n == 40
    # Copies add no knowledge: the interval stays as wide.
    assert grouped.high - grouped.low == pytest.approx(alone.high - alone.low, rel=0.15)


def test_what_cannot_be_known_is_none() -> None:
    assert krippendorff_alpha([{"x": 1, "y": 1}, {"x": 1, "y": 1}], "nominal") is None
    assert krippendorff_alpha([{"x": 1}, {"y": 2}], "nominal") is None
    assert cohen_kappa(["a", "a"], ["a", "a"]) is None
    perfect = krippendorff_alpha([{"x": v, "y": v} for v in (1, 2, 3)], "interval")
    assert perfect is not None
    assert perfect.value == pytest.approx(1)
