"""Each finding says what its figures say, on runs made to show one fault each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hostile import estimate

from dpo.pages import evaluation_findings, training_findings
from dpo.pages.finding import GOOD, NOTE, UNKNOWN, WARNING
from dpo.pages.findings import findings
from dpo.records.read import RunFiles


def _run(
    train: list[float], dev: dict[int, float], accuracy: tuple[float, float] = (0.8, 0.8), **record: Any
) -> RunFiles:
    rows = [{"step": i + 1, "loss": loss, "rewards/accuracies": accuracy[0]} for i, loss in enumerate(train)]
    later = [
        {"step": step, "loss": loss, "rewards/accuracies": accuracy[1], "rewards/margins": 0.0, "rewards/chosen": -1.0,
         "rewards/rejected": -2.0}
        for step, loss in dev.items()
    ]  # fmt: skip
    return RunFiles(Path("r"), record, "complete", {"dpo": {"beta": 0.1}}, rows, later, {}, {})


def _summary(**parts: Any) -> dict[str, Any]:
    side = {"words": estimate(30, 1), "tokens": estimate(40, 1), "finished": 90, "truncated": 10, "empty": 0}
    judged = {
        "decides": True, "difference": estimate(0.2, 0.1), "wins": 30, "ties": 60, "losses": 10, "sign_test_p": 0.002,
        "win_rate": estimate(0.6, 0.05), "length_controlled_win_rate": estimate(0.6, 0.05),
    }  # fmt: skip
    base = {
        "split": "test",
        "settings": {"max_new_tokens": 80},
        "pairs": {"pairs": 100, "chosen_log_ratio": estimate(2, 1), "rejected_log_ratio": estimate(-5, 1)},
        "answers": {"answers": 100, "policy": dict(side), "baseline": dict(side), "words_difference": estimate(0, 1)},
        "judges": {"rules": judged},
        "divergence": {"per_answer": estimate(3, 1), "per_token": estimate(0.1, 0.02), "answers": 60},
    }
    return base | parts


def test_reference_identity() -> None:
    def level(**record: float) -> str:
        return training_findings.reference_identity(_run([], {}, **record)).level

    assert level(reference_identity=1e-6, reference_identity_bound=1e-3) == GOOD
    assert level(reference_identity=0.4, reference_identity_bound=1e-3) == WARNING
    assert level() == UNKNOWN


def test_a_stuck_a_falling_and_a_rising_loss() -> None:
    stuck = training_findings.loss_moves(_run([0.6931] * 20, {0: 0.6931, 20: 0.6930}))
    assert stuck.level == WARNING
    assert "stuck" in stuck.words
    assert "0.6931" in stuck.evidence[0]
    assert training_findings.loss_moves(_run([0.69, 0.6, 0.5, 0.4], {0: 0.69, 4: 0.4})).level == GOOD
    assert "higher than it started" in training_findings.loss_moves(_run([0.7] * 5, {0: 0.69, 5: 0.9})).words
    assert training_findings.loss_moves(_run([0.69], {})).level == UNKNOWN


def test_overfitting_is_dev_loss_that_rises_again() -> None:
    rising = training_findings.overfitting(_run([0.6, 0.5, 0.3, 0.1], {0: 0.69, 2: 0.5, 4: 0.7}))
    assert rising.level == WARNING
    assert "step 2" in rising.words
    assert training_findings.overfitting(_run([0.6, 0.5, 0.4, 0.4], {0: 0.69, 2: 0.5, 4: 0.45})).level == GOOD
    gap = training_findings.overfitting(_run([0.6, 0.5, 0.4, 0.4], {0: 0.69, 4: 0.6}, accuracy=(1.0, 0.6)))
    assert gap.level == NOTE


def test_what_keeps_overfitting_from_being_seen_is_named() -> None:
    few = training_findings.overfitting(_run([0.6, 0.5, 0.4], {0: 0.69, 3: 0.5}))
    assert (few.level, few.words) == (UNKNOWN, "Too few logged steps to say.")
    none = training_findings.overfitting(_run([0.6, 0.5, 0.4, 0.3], {0: 0.69}))
    assert (none.level, none.words) == (UNKNOWN, "No dev figures after step 0.")


@pytest.mark.parametrize(
    ("chosen", "rejected", "level", "words"),
    [
        (estimate(-8, 2), estimate(-20, 2), WARNING, "Both"),
        (estimate(-0.7, 0.2), estimate(-3, 1), NOTE, "a little less likely"),
        (estimate(-8, 2), estimate(0, 2), WARNING, "Chosen answers got less likely"),
        (estimate(5, 2), estimate(-20, 2), GOOD, "likelier"),
        (estimate(-0.5, 1), estimate(-20, 2), GOOD, "kept"),
    ],
)
def test_likelihood_displacement(chosen: Any, rejected: Any, level: str, words: str) -> None:
    tokens = estimate(40, 1)
    pairs = {"pairs": 100, "chosen_tokens": tokens, "chosen_log_ratio": chosen, "rejected_log_ratio": rejected}
    found = evaluation_findings.displacement(_run([], {}), _summary(pairs=pairs))
    assert (found.level, words in found.words) == (level, True)
    assert len(found.evidence) == 2


def test_displacement_from_dev_when_there_is_no_evaluation() -> None:
    found = evaluation_findings.displacement(_run([0.6] * 4, {0: 0.69, 4: 0.5}), None)
    assert found.level == WARNING
    assert "chosen -10.0, rejected -20.0" in found.evidence[0]


def test_noise_names_how_many_prompts_would_settle_it() -> None:
    judged = _summary()["judges"]["rules"]
    assert evaluation_findings.noise("rules", judged).level == GOOD
    assert evaluation_findings.noise("rules", judged | {"difference": estimate(-0.2, 0.1)}).level == WARNING
    unsure = evaluation_findings.noise("rules", judged | {"difference": estimate(0.05, 0.1, n=100)})
    assert unsure.level == NOTE
    assert "About 400 prompts" in unsure.words
    assert evaluation_findings.noise("rules", judged | {"difference": estimate(0.0, 0.1)}).level == NOTE


def test_a_win_by_length_alone_is_called_that() -> None:
    side = {"words": estimate(30, 1), "tokens": estimate(40, 1), "finished": 90, "truncated": 10, "empty": 0}
    answers = {
        "answers": 100,
        "baseline": side,
        "policy": side | {"words": estimate(60, 1)},
        "words_difference": estimate(30, 3),
    }
    judged = _summary()["judges"]["rules"] | {"length_controlled_win_rate": estimate(0.5, 0.05)}
    found = evaluation_findings.length_exploitation(_summary(answers=answers, judges={"rules": judged}))
    assert found.level == WARNING
    assert "longer answers explain it" in found.words
    assert evaluation_findings.length_exploitation(_summary(answers=answers)).level == NOTE
    assert evaluation_findings.length_exploitation(_summary()).level == GOOD
    assert evaluation_findings.length_exploitation(None).level == UNKNOWN


def test_a_change_of_length_explains_no_outcome_where_there_is_none() -> None:
    answers = _summary()["answers"] | {"words_difference": estimate(-12, 3)}
    answers["policy"] = answers["policy"] | {"words": estimate(18, 1)}
    assert evaluation_findings.length_exploitation(_summary(answers=answers, judges={})).words == (
        "Answers became shorter."
    )
    pairs = _summary()["pairs"] | {"chosen_tokens": estimate(20, 1)}
    few = _summary(answers=answers | {"prompts": 1}, pairs=pairs)
    (found,) = [one for one in findings(_run([0.6] * 4, {}), few) if one.name == "Length exploitation"]
    assert found.words.startswith("Too few to say: 1 prompt, ")


def test_cut_and_empty_answers() -> None:
    answers = _summary()["answers"]
    worse = answers | {"policy": answers["policy"] | {"truncated": 30}}
    assert evaluation_findings.truncation(_summary(answers=worse)).level == WARNING
    empty = answers | {"policy": answers["policy"] | {"empty": 5}}
    assert "5 of 100" in evaluation_findings.truncation(_summary(answers=empty)).words
    assert evaluation_findings.truncation(_summary()).level == GOOD


def test_distance_from_the_reference() -> None:
    assert evaluation_findings.movement(_summary()).level == GOOD
    far = {"per_answer": estimate(40, 3), "per_token": estimate(1.2, 0.1), "answers": 60}
    assert evaluation_findings.movement(_summary(divergence=far)).level == WARNING
    assert evaluation_findings.movement(_summary(divergence=None)).level == UNKNOWN
