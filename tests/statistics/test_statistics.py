"""The statistics: against known values, against brute force, and their error rates over simulated comparisons."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpo.statistics.calibration import calibration
from dpo.statistics.intervals import (
    bootstrap_mean,
    compare_scores,
    sign_test,
    wilson,
)
from dpo.statistics.length_control import length_controlled_win_rate
from dpo.statistics.paired import paired_shares

SIMULATIONS = 200
PROMPTS = 300


def test_wilson_matches_published_values() -> None:
    # Newcombe 1998, table I: 81/263, 15/148, 0/20, 1/29.
    for successes, trials, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0, 0.1611)):
        estimate = wilson(successes, trials)
        assert estimate.low == pytest.approx(low, abs=5e-5)
        assert estimate.high == pytest.approx(high, abs=5e-5)
    assert wilson(20, 20).high == 1


def test_sign_test_matches_the_binomial_sum() -> None:
    assert sign_test(0, 0) == 1
    assert sign_test(5, 5) == 1
    assert sign_test(9, 1) == pytest.approx(2 * (1 + 10) / 2**10)
    assert sign_test(60, 40) == pytest.approx(0.0568879, abs=1e-6)
    assert 0 < sign_test(5000, 1000) < 1e-300 or sign_test(5000, 1000) == 0


@given(st.integers(0, 40), st.integers(0, 40))
def test_sign_test_agrees_with_exact_integers(wins: int, losses: int) -> None:
    n = wins + losses
    exact = min(1.0, 2 * sum(math.comb(n, k) for k in range(min(wins, losses) + 1)) / 2**n)
    assert sign_test(wins, losses) == pytest.approx(exact)
    assert sign_test(wins, losses) == sign_test(losses, wins)


def test_bootstrap_interval_is_about_as_wide_as_theory_says() -> None:
    values = np.random.default_rng(0).normal(2, 3, 500)
    estimate = bootstrap_mean(values, resamples=4000)
    half = 1.96 * values.std() / math.sqrt(500)
    assert estimate.value == pytest.approx(values.mean())
    assert estimate.high - estimate.low == pytest.approx(2 * half, rel=0.06)
    assert estimate == bootstrap_mean(values, resamples=4000)


def test_rows_of_one_prompt_are_resampled_together() -> None:
    values = np.repeat(np.random.default_rng(1).normal(0, 1, 100), 20)
    groups = np.repeat(np.arange(100), 20).tolist()
    honest, naive = bootstrap_mean(values, groups), bootstrap_mean(values)
    assert honest.n == 100
    assert (honest.high - honest.low) == pytest.approx(math.sqrt(20) * (naive.high - naive.low), rel=0.15)


def test_a_constant_has_no_width_and_nothing_has_no_mean() -> None:
    assert bootstrap_mean([3.0] * 10).low == bootstrap_mean([3.0] * 10).high == 3
    with pytest.raises(ValueError, match="no values"):
        bootstrap_mean([])


def _prompt_difficulty(rng: np.random.Generator, mean: float) -> np.ndarray:
    """Chance that an answer to a prompt meets a rule. Beta with the spread seen for the embedded model's answers:
    two samples of one prompt disagree about 76% as often as samples of two prompts."""
    concentration = 0.76 / (1 - 0.76)
    return rng.beta(mean * concentration, (1 - mean) * concentration, PROMPTS)


def _called_different(seed: int, gain: float, samples: int) -> bool:
    rng = np.random.default_rng(seed)
    before = _prompt_difficulty(rng, 0.4)
    # The gain moves the share of met rules by `gain` in the mean, most where there is room.
    after = np.clip(before + gain * (1 - before) / (1 - before).mean(), 0, 1)
    first = (rng.random((samples, PROMPTS)) < after).ravel()
    second = (rng.random((samples, PROMPTS)) < before).ravel()
    groups = list(range(PROMPTS)) * samples
    return compare_scores(first.astype(float), second.astype(float), groups, resamples=300, seed=seed).different


@pytest.mark.parametrize("samples", [1, 2])
def test_two_seeds_of_one_model_are_rarely_called_different(samples: int) -> None:
    calls = sum(_called_different(seed, 0.0, samples) for seed in range(SIMULATIONS))
    assert calls / SIMULATIONS <= 0.08


def test_a_share_ten_points_higher_is_found_with_two_samples_a_prompt() -> None:
    # One sample a prompt finds it in 77% of 1000 simulations, two in 97%.
    calls = sum(_called_different(1000 + seed, 0.10, 2) for seed in range(SIMULATIONS))
    assert calls / SIMULATIONS >= 0.80


def test_a_win_rate_ten_points_above_even_is_found_without_any_tie() -> None:
    calls = 0
    for seed in range(SIMULATIONS):
        wins = np.random.default_rng(5000 + seed).random(PROMPTS) < 0.60
        calls += compare_scores(wins.astype(float), 1.0 - wins, resamples=300, seed=seed).different
    assert calls / SIMULATIONS >= 0.80


def test_outcomes_ties_and_swapped_sides() -> None:
    result = compare_scores([1, 0, 1, 0.5], [0, 0, 1, 1])
    assert (result.wins, result.ties, result.losses) == (1, 2, 1)
    assert result.net.value == 0
    assert result.win_rate.value == 0.5
    assert not result.different
    swapped = compare_scores([0, 0, 1, 1], [1, 0, 1, 0.5])
    assert (swapped.wins, swapped.losses) == (result.losses, result.wins)
    assert compare_scores([1.0, 1.0], [0.95, 0.0], tie=0.1).ties == 1


def test_samples_of_one_prompt_are_one_vote() -> None:
    first, second = [1.0] * 50, [0.0] * 50
    assert compare_scores(first, second, groups=["a"] * 50).p == 1.0
    assert compare_scores(first, second).p < 1e-10


def _verbose_judge(seed: int, quality: float, n: int = 4000) -> tuple[np.ndarray, np.ndarray]:
    """Outcomes of a judge that likes length: p(win) = sigmoid(quality + 1.5 tanh(gap / sd))."""
    rng = np.random.default_rng(seed)
    gap = rng.normal(20, 25, n)
    chance = 1 / (1 + np.exp(-(quality + 1.5 * np.tanh(gap / gap.std()))))
    return (rng.random(n) < chance).astype(float), gap


def test_length_control_removes_a_planted_length_bias() -> None:
    outcome, gap = _verbose_judge(0, 0.0)
    assert outcome.mean() > 0.62
    controlled = length_controlled_win_rate(outcome, gap, resamples=200)
    assert controlled.low < 0.5 < controlled.high
    outcome, gap = _verbose_judge(1, 0.8)
    controlled = length_controlled_win_rate(outcome, gap, resamples=200)
    assert controlled.value == pytest.approx(1 / (1 + math.exp(-0.8)), abs=0.04)


def test_length_control_without_a_length_difference_is_the_win_rate() -> None:
    outcome = [1.0] * 30 + [0.0] * 10 + [0.5] * 10
    assert length_controlled_win_rate(outcome, [0.0] * 50, resamples=50).value == pytest.approx(0.7, abs=1e-3)


def test_length_control_stays_finite_when_one_side_always_wins() -> None:
    estimate = length_controlled_win_rate([1.0] * 40, list(range(40)), resamples=50)
    assert 0.9 < estimate.low <= estimate.high <= 1


def test_calibration_of_a_calibrated_and_an_overconfident_model() -> None:
    rng = np.random.default_rng(3)
    truth = rng.uniform(0.5, 1, 20000)
    # A pair is labelled by its truth; the label says "chosen", so a pair that came out the other way has p = 1 - truth.
    p = np.where(rng.random(20000) < truth, truth, 1 - truth)
    assert calibration(p, resamples=50).error.value < 0.01
    sure = np.where(rng.random(20000) < 0.7, 0.99, 0.01)
    assert calibration(sure, resamples=50).error.value == pytest.approx(0.29, abs=0.01)
    assert calibration([0.5] * 10).error.value == 0


def test_the_interval_of_the_calibration_error_holds_the_truth_about_as_often_as_it_says() -> None:
    held = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        # Right 70 times in 100 at a confidence of 0.95: the error is 0.25.
        p = np.where(rng.random(400) < 0.7, 0.95, 0.05)
        error = calibration(p, resamples=200, seed=seed).error
        assert error.low <= error.value <= error.high
        held += error.low <= 0.25 <= error.high
    assert held >= 88
    # Rows of one prompt are one draw: four copies of each row are no more sure than one.
    copies = calibration(np.repeat(p, 4), np.repeat(np.arange(400), 4).tolist(), resamples=400).error
    once = calibration(p, resamples=400).error
    assert copies.high - copies.low == pytest.approx(once.high - once.low, rel=0.1)


def test_the_interval_of_paired_shares_covers_what_it_says_and_keeps_its_width() -> None:
    # 36, 12, 2, 0 of 50 (both, first only, second only, neither): by the published formula, without a library.
    first = [1.0] * 48 + [0.0] * 2
    found = paired_shares(first, [1.0] * 36 + [0.0] * 12 + [1.0] * 2, 0.95)
    assert (found.value, found.low, found.high) == pytest.approx((0.2, 0.0569, 0.3404), abs=1e-4)
    alike = paired_shares([1.0] * 20, [1.0] * 20, 0.95)
    assert (alike.value, alike.high) == pytest.approx((0, 1 - wilson(20, 20).low))
    rng, covered = np.random.default_rng(0), 0
    for _ in range(400):
        drawn = rng.choice(4, 60, p=[0.5, 0.2, 0.05, 0.25])
        found = paired_shares(drawn < 2, (drawn == 0) | (drawn == 2), 0.95)
        covered += found.low <= 0.15 <= found.high
    assert 0.92 <= covered / 400 <= 0.98
