"""The rule that ranks answers: each facet fails alone on an answer written for it, and fair answers pass."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpo.evaluation.rules import FACETS, check, sentences, sentences_granted, stem

WHAT = "What is yeast? Answer in one or two sentences."
GOOD = "Yeast is a tiny living fungus that eats sugar and gives off gas, which makes bread dough rise."


@pytest.mark.parametrize(
    ("prompt", "answer", "subject"),
    [
        (WHAT, GOOD, "yeast"),
        (
            "Describe a lighthouse in one sentence.",
            "A tall white lighthouse stands on the cliff and sends its beam over the dark sea.",
            "a lighthouse",
        ),
        (
            "Write a two-sentence story about a lost wallet.",
            "Dr. Lee found a wallet on the bus to Oslo and looked for its owner all day. “It is mine,” said a child.",
            "a lost wallet",
        ),
        (
            "How do I bake bread? Keep it to two sentences.",
            "Mix flour, water, salt and yeast, and let the dough rest. Baking takes about 40 minutes at 220 degrees.",
            "bake bread",
        ),
        (
            "Write one friendly sentence that invites someone to see a dragon.",
            "I would love to show you the gentle green dragon that lives behind our old mill this weekend!",
            "a dragon",
        ),
    ],
)
def test_a_fair_answer_meets_the_rule(prompt: str, answer: str, subject: str) -> None:
    verdict = check(prompt, answer, True, subject)
    assert verdict.meets, verdict.failed
    assert 1 <= verdict.score <= 1.1


@pytest.mark.parametrize(
    ("facet", "answer"),
    [
        ("complete", GOOD[:-1]),
        ("direct", "Sure! " + GOOD),
        ("direct", "Here's a short answer, yeast is a fungus that eats sugar and makes dough rise in the warm oven."),
        ("direct", "I'm sorry, yeast is a small fungus about which little can be said by a language program today."),
        ("direct", "Yeast: a fungus that eats sugar and gives off the gas that makes bread dough rise."),
        ("direct", "What is yeast? It is a small living fungus that eats sugar and makes bread dough rise."),
        ("direct", "1. Yeast is a fungus that eats sugar and gives off gas that makes bread dough rise."),
        ("direct", "Yeast is a fungus that eats sugar.\n\nIt gives off the gas that makes bread dough rise."),
        ("direct", "Yeast is a fungus that eats sugar and makes dough rise, but which dough do you bake at home?"),
        ("brief", "Yeast is a fungus. It eats sugar in dough. It gives off gas. Bread rises well because of that."),
        ("substantial", "Yeast is a tiny living fungus."),
        ("on_topic", "A tiny living fungus eats sugar and gives off gas, which makes bread dough rise."),
        (
            "not_repeating",
            "Yeast is a fungus that makes bread dough rise, and bakers know that it makes bread dough rise.",
        ),
        ("not_repeating", "Yeast is a tiny tiny living fungus that eats sugar and makes bread dough rise."),
        ("not_repeating", "Yeast is a fungus of sugar and sugar that turns flour, water and salt into dough."),
        (
            "not_repeating",
            "Yeast loves sugar, eats sugar fast, and gives off gas once all sugar inside the dough is gone.",
        ),
        ("plain", "Yeast is a fungus that eats sugar in the doughHETATM and makes the loaf rise."),
        ("plain", "Yeast is a fungus that eats <b>sugar</b> in the dough and makes the loaf rise."),
        ("plain", "Yeast is a fungus that Jane, Ravi, Olaf and Wen of Harbury found in the dough of old loaves."),
        ("plain", 'Yeast is a fungus that eats sugar in the "dough and makes the loaf rise.'),
        ("plain", "酵母 Yeast is a fungus that eats sugar in the dough and makes the loaf rise."),
    ],
)
def test_each_facet_fails_alone(facet: str, answer: str) -> None:
    verdict = check(WHAT, answer, True, "yeast")
    assert verdict.failed == (facet,)
    assert not verdict.meets
    assert verdict.score < check(WHAT, GOOD, True, "yeast").score


def test_a_cut_answer_is_not_complete_even_with_a_full_stop() -> None:
    assert check(WHAT, GOOD, False, "yeast").failed == ("complete",)


def test_the_prompt_grants_the_sentences() -> None:
    assert sentences_granted("Describe a fox in one sentence.") == 1
    assert sentences_granted("Write one friendly sentence that invites someone to see a fox.") == 1
    assert sentences_granted(WHAT) == 2
    assert sentences_granted("Write a two-sentence story about a fox.") == 2
    assert sentences_granted("Why does salt matter? Answer briefly.") == 3


def test_abbreviations_and_decimals_end_no_sentence() -> None:
    assert len(sentences("Mr. Lee paid 3.14 dollars to St. Anne. He left.")) == 2


@pytest.mark.parametrize(
    ("one", "other"), [("bakes", "baking"), ("stories", "story"), ("running", "run"), ("Apple's", "apples")]
)
def test_stems_join_word_forms(one: str, other: str) -> None:
    assert stem(one) == stem(other)


def test_without_a_subject_one_content_word_of_the_prompt_is_enough() -> None:
    assert check("Tell me about yeast and bread.", GOOD, True, None).meets
    assert check("Tell me about the moon.", GOOD, True, None).failed == ("on_topic",)


def test_a_longer_good_answer_never_scores_below_a_shorter_one() -> None:
    longer = "Yeast is a tiny living fungus that eats sugar and gives off gas. Bakers use it because warm dough rises."
    assert check(WHAT, longer, True, "yeast").score >= check(WHAT, GOOD, True, "yeast").score


@given(st.text(), st.text(), st.booleans(), st.one_of(st.none(), st.text()))
def test_any_text_gets_a_verdict_within_bounds(prompt: str, answer: str, finished: bool, subject: str | None) -> None:
    verdict = check(prompt, answer, finished, subject)
    assert verdict == check(prompt, answer, finished, subject)
    assert 0 <= verdict.score <= 1.1
    assert verdict.meets == (not verdict.failed)
    assert set(verdict.failed) <= set(FACETS)
    if not answer.strip():
        assert not verdict.meets
