"""One row at a time: label semantics of each source, and every refusal by its name."""

from __future__ import annotations

import json
from typing import Any

import pytest
from data_options import dataset

from dpo.data.pair import Message, Pair
from dpo.data.refusal import Reason, Refusal
from dpo.data.sources import SOURCES


def convert(option: str, row: Any, **values: Any) -> Any:
    return SOURCES[option](row, f"{option}:train:0", dataset(option, **values))


def refused(option: str, row: Any, **values: Any) -> tuple[Reason, str]:
    result = convert(option, row, **values)
    assert isinstance(result, Refusal), result
    return result.reason, result.field


def transcript(*turns: str) -> str:
    return "".join(f"\n\n{role}: {turn}" for role, turn in zip(("Human", "Assistant") * 9, turns, strict=False))


def test_hh_splits_at_the_last_answer_not_at_the_common_prefix() -> None:
    lead = ("Hi", "Hello.", "Tell me\n\nmore. Human: not a turn")
    row = {"chosen": transcript(*lead, "Sure, yes"), "rejected": transcript(*lead, "Sure, no")}
    assert convert("hh_rlhf", row) == Pair(
        "hh_rlhf:train:0",
        (Message("user", lead[0]), Message("assistant", lead[1]), Message("user", lead[2])),
        "Sure, yes",
        "Sure, no",
        f"user: Hi\nassistant: Hello.\nuser: {' '.join(lead[2].split())}",
    )


@pytest.mark.parametrize(
    ("chosen", "rejected", "expected"),
    [
        (transcript("a", "b", "c", "d"), transcript("a", "X", "c", "e"), (Reason.prompts_differ, "rejected")),
        (transcript("a", "b"), transcript("a", "b", "c", "d"), (Reason.prompts_differ, "rejected")),
        (transcript("a", ""), transcript("a", "b"), (Reason.empty_chosen, "chosen")),
        (transcript("a", "b"), transcript("a", " \n"), (Reason.empty_rejected, "rejected")),
        (transcript("a", "b  c"), transcript("a", "b c"), (Reason.identical, "rejected")),
        (transcript("", "b"), transcript("", "c"), (Reason.empty_prompt, "prompt")),
        (transcript("a"), transcript("a", "b"), (Reason.roles, "chosen")),
        ("Once upon a time", transcript("a", "b"), (Reason.roles, "chosen")),
        (transcript("a", "b"), "\n\nAssistant: b", (Reason.roles, "rejected")),
        (None, transcript("a", "b"), (Reason.null, "chosen")),
        (transcript("a", "b"), 3, (Reason.not_text, "rejected")),
        (transcript("a", "b"), transcript("a", "\ud800"), (Reason.lone_surrogate, "rejected")),
    ],
)
def test_hh_refusals(chosen: Any, rejected: Any, expected: tuple[Reason, str]) -> None:
    assert refused("hh_rlhf", {"chosen": chosen, "rejected": rejected}) == expected


def shp_row(**values: Any) -> dict[str, Any]:
    row = {
        "post_id": "p1",
        "domain": "askphysics_test",
        "history": "Title. Body",
        "human_ref_A": "A",
        "human_ref_B": "B",
    }
    return {**row, "labels": 1, "score_A": 30, "score_B": 10, "score_ratio": 3.0, **values}


def test_shp_label_one_prefers_a() -> None:
    one = convert("shp", shp_row())
    other = convert("shp", shp_row(labels=0, score_A=10, score_B=30))
    assert (one.chosen, one.rejected, one.group, one.strength) == ("A", "B", "p1", 1.0)
    assert (other.chosen, other.rejected) == ("B", "A")


def test_shp_ratio_is_a_threshold_and_a_soft_label() -> None:
    assert refused("shp", shp_row(score_ratio=1.9)) == (Reason.weak, "score_ratio")
    assert convert("shp", shp_row(score_ratio=1.9), min_ratio=1.5).strength == 1.0
    assert convert("shp", shp_row(), soft_labels=True).strength == 0.75
    weak, tie = shp_row(score_A=15, score_ratio=1.5), shp_row(score_A=10, score_ratio=1.0)
    assert convert("shp", weak, soft_labels=True).strength == 0.6
    assert convert("shp", tie, soft_labels=True).strength == 0.5
    unequal = shp_row(score_A=10, score_ratio=2.0)
    assert refused("shp", unequal, soft_labels=True) == (Reason.label_disagrees, "score_ratio")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"labels": 0}, (Reason.label_disagrees, "labels")),
        ({"labels": 2}, (Reason.label_unknown, "labels")),
        ({"score_ratio": 0.5}, (Reason.label_disagrees, "score_ratio")),
        ({"score_A": 10}, (Reason.tie, "score_A")),
        ({"score_ratio": "3"}, (Reason.not_text, "score_ratio")),
        ({"score_ratio": float("nan")}, (Reason.not_text, "score_ratio")),
        ({"human_ref_B": None}, (Reason.null, "human_ref_B")),
        ({"history": "  "}, (Reason.empty_prompt, "prompt")),
    ],
)
def test_shp_refusals(values: dict[str, Any], expected: tuple[Reason, str]) -> None:
    assert refused("shp", shp_row(**values)) == expected


def webgpt_row(score: float, **values: Any) -> dict[str, Any]:
    question = {"dataset": "eli5", "id": "q7", "full_text": "Why?"}
    quotes = {"quotes_0": {"title": ["t"], "extract": ["e"]}, "quotes_1": {"title": [], "extract": []}}
    answers = {"answer_0": "zero [1]", "answer_1": "one", "score_0": score, "score_1": -score}
    return {"question": question, **quotes, **answers, **values}


def test_webgpt_sign_decides_and_quotes_stay_out() -> None:
    better, worse = convert("webgpt", webgpt_row(0.5)), convert("webgpt", webgpt_row(-1.0))
    assert (better.chosen, better.rejected, better.group) == ("zero [1]", "one", "eli5:q7")
    assert (worse.chosen, worse.rejected, worse.strength) == ("one", "zero [1]", 1.0)
    assert better.prompt == worse.prompt == (Message("user", "Why?"),)


def test_webgpt_ties_are_refused_or_half_labels() -> None:
    assert refused("webgpt", webgpt_row(0.0)) == (Reason.tie, "score_0")
    assert convert("webgpt", webgpt_row(0.0), soft_labels=True).strength == 0.5


def test_webgpt_raw_lines_hold_two_objects() -> None:
    row = webgpt_row(0.5)
    sides = [
        {"question": row["question"], "quotes": row[f"quotes_{i}"], "answer": row[f"answer_{i}"],
         "score": row[f"score_{i}"], "tokens": {"prefix": [], "completion": []}}
        for i in (0, 1)
    ]  # fmt: skip
    assert convert("webgpt", sides) == convert("webgpt", row)
    sides[1]["question"] = {**row["question"], "id": "other"}
    assert refused("webgpt", sides) == (Reason.prompts_differ, "question")
    assert refused("webgpt", sides[:1])[0] is Reason.unparsable


def test_webgpt_refusals() -> None:
    assert refused("webgpt", webgpt_row(0.5, score_1=0.5)) == (Reason.label_disagrees, "score_0")
    assert refused("webgpt", webgpt_row(0.5, answer_1="")) == (Reason.empty_rejected, "rejected")
    assert refused("webgpt", webgpt_row(0.5, question=None)) == (Reason.null, "question")
    assert refused("webgpt", webgpt_row(0.5, question={"id": 1})) == (Reason.missing, "full_text")


def talk(*texts: str) -> list[dict[str, str]]:
    return [{"role": role, "content": text} for role, text in zip(("user", "assistant") * 5, texts, strict=False)]


def test_ultrafeedback_both_forms_give_the_same_pair() -> None:
    lists = {"chosen": talk("Q", "good"), "rejected": talk("Q", "bad"), "score_chosen": 8.0, "score_rejected": 5.0}
    implicit = convert("ultrafeedback", lists)
    explicit = convert("ultrafeedback", {**lists, "prompt": "Q", "prompt_id": "x", "messages": talk("Q", "good")})
    assert implicit == explicit
    assert (implicit.prompt, implicit.chosen, implicit.rejected) == ((Message("user", "Q"),), "good", "bad")


def test_ultrafeedback_refusals() -> None:
    row = {"chosen": talk("Q", "good"), "rejected": talk("Q", "bad"), "score_chosen": 5.0, "score_rejected": 5.0}
    assert refused("ultrafeedback", row) == (Reason.tie, "score_chosen")
    assert convert("ultrafeedback", row, soft_labels=True).strength == 0.5
    assert refused("ultrafeedback", {**row, "score_chosen": 4.0}) == (Reason.label_disagrees, "score_chosen")
    row["score_chosen"] = 9.0
    assert refused("ultrafeedback", {**row, "rejected": talk("R", "bad")}) == (Reason.prompts_differ, "rejected")
    assert refused("ultrafeedback", {**row, "prompt": "other"}) == (Reason.prompts_differ, "prompt")
    assert refused("ultrafeedback", {**row, "chosen": talk("Q")}) == (Reason.roles, "chosen")


@pytest.mark.parametrize(
    ("preference", "chosen", "strength"), [(-3, "one", 1.0), (-1, "one", 2 / 3), (2, "two", 5 / 6), (3, "two", 1.0)]
)
def test_helpsteer_negative_prefers_the_first(preference: int, chosen: str, strength: float) -> None:
    row = {"context": talk("Q"), "response1": "one", "response2": "two", "overall_preference": preference}
    assert convert("helpsteer3", row).chosen == chosen
    assert convert("helpsteer3", row).strength == 1.0
    assert convert("helpsteer3", row, soft_labels=True).strength == pytest.approx(strength)


def test_helpsteer_refusals() -> None:
    row = {"context": talk("Q"), "response1": "one", "response2": "two", "overall_preference": 0}
    assert refused("helpsteer3", row) == (Reason.tie, "overall_preference")
    assert refused("helpsteer3", {**row, "overall_preference": 7}) == (Reason.label_unknown, "overall_preference")
    assert refused("helpsteer3", {**row, "overall_preference": 1, "context": "Q"}) == (Reason.not_text, "context")


def test_synthetic_rows_are_grouped_by_subject() -> None:
    row = {"id": "s1", "prompt": "Q", "chosen": "a", "rejected": "b", "subject": "tea", "judge": "rule"}
    got = convert("synthetic", row)
    assert (got.group, got.meta) == ("tea", {"id": "s1", "subject": "tea", "judge": "rule"})


SHAREGPT = {
    "conversations": [{"from": "system", "value": "S"}, {"from": "human", "value": "Q"}],
    "chosen": {"from": "gpt", "value": "good"},
    "rejected": {"from": "gpt", "value": "bad"},
}
LOCAL = {
    "text": {"prompt": "Q", "chosen": "good", "rejected": "bad"},
    "prompt as messages": {"prompt": talk("Q"), "chosen": "good", "rejected": "bad"},
    "answers as messages": {"prompt": talk("Q"), "chosen": talk("Q", "good")[1:], "rejected": talk("Q", "bad")[1:]},
    "answers as whole talks": {"prompt": "Q", "chosen": talk("Q", "good"), "rejected": talk("Q", "bad")},
    "implicit prompt": {"chosen": talk("Q", "good"), "rejected": talk("Q", "bad")},
    "transcripts": {"chosen": transcript("Q", "good"), "rejected": transcript("Q", "bad")},
    "labelled a": {"prompt": "Q", "response_a": "good", "response_b": "bad", "label": "A"},
    "labelled b": {"prompt": "Q", "response_a": "bad", "response_b": "good", "label": "b"},
    "question": {"question": "Q", "chosen": "good", "rejected": "bad"},
}


@pytest.mark.parametrize("shape", LOCAL)
def test_local_shapes_give_one_pair(shape: str) -> None:
    expected = Pair("local:train:0", (Message("user", "Q"),), "good", "bad", "user: Q")
    assert convert("local", LOCAL[shape]) == expected


@pytest.mark.parametrize("row", [SHAREGPT, {"system": "S", "question": "Q", "chosen": "good", "rejected": "bad"}])
def test_local_shapes_with_a_system_message(row: dict[str, Any]) -> None:
    assert convert("local", row).prompt == (Message("system", "S"), Message("user", "Q"))


def test_local_columns_can_be_renamed() -> None:
    row = {"instruction": "Q", "good": "a", "bad": "b", "source": "me"}
    got = convert("local", row, columns={"prompt": "instruction", "chosen": "good", "rejected": "bad"})
    assert (got.chosen, got.rejected, got.meta) == ("a", "b", {"source": "me"})
    assert refused("local", row, columns={"prompt": "query"}) == (Reason.missing, "query")


def test_local_labels_are_never_guessed() -> None:
    row = {"prompt": "Q", "response_a": "x", "response_b": "y", "label": 1}
    assert refused("local", row) == (Reason.label_unknown, "label")
    assert convert("local", row, label_a="0", label_b="1").chosen == "y"
    assert refused("local", {**row, "label": "tie"}) == (Reason.tie, "label")
    assert convert("local", {**row, "label": "tie"}, soft_labels=True).strength == 0.5


def test_local_names_the_columns_it_saw() -> None:
    result = convert("local", {"instruction": "Q", "output": "a"})
    named = "name yours, as dataset.columns={prompt: instruction, chosen: good, rejected: bad}"
    assert str(result) == f"missing: columns are instruction, output; {named}"
    for row, near in (
        ({"prompt": "Q", "preferred": "a", "rejected": "b"}, "chosen: missing: nearest column: preferred"),
        ({"prompt": "Q", "chosen": "a", "rejectd": "b"}, "rejected: missing: nearest column: rejectd"),
        ({"prompt": "Q", "chosen": "a", "n": 1}, "rejected: missing: columns are prompt, chosen, n"),
    ):
        result = convert("local", row)
        assert f"{result.field}: {result}" == near
    assert refused("local", {"chosen": "a", "rejected": "b"}) == (Reason.missing, "prompt")
    assert refused("local", "just text")[0] is Reason.unparsable


def test_a_label_beside_chosen_and_rejected_is_one_column_more() -> None:
    pair = convert("local", {"prompt": "Q", "chosen": "a", "rejected": "b", "label": "helpful"})
    assert (pair.chosen, pair.rejected, pair.meta, pair.notes) == ("a", "b", {"label": "helpful"}, ())


def test_a_system_column_beside_another_system_message_is_refused() -> None:
    row = {"prompt": [{"role": "system", "content": "be short"}, {"role": "user", "content": "Q"}]}
    row |= {"chosen": "a", "rejected": "b"}
    assert refused("local", {**row, "system": "be FRENCH"}) == (Reason.given_twice, "system")
    assert [turn.content for turn in convert("local", {**row, "system": "be  short"}).prompt] == ["be short", "Q"]


def test_a_text_in_a_column_that_is_not_read_is_noted() -> None:
    row = {"prompt": "Q", "question": "Another?", "chosen": "a", "rejected": "b", "response_a": None, "extra": 1}
    pair = convert("local", row)
    assert (pair.notes, pair.meta) == (("column question not read",), {"extra": 1})
    # What others call a prompt's second half, its system message, or the turns before it.
    row = {"prompt": "Q", "chosen": "a", "rejected": "b", "input": "the text", "history": [["q", "a"]], "id": "r-1"}
    assert convert("local", row).notes == ("column input not read", "column history not read")


def test_answers_that_begin_with_their_prompt_are_noted() -> None:
    whole = {"prompt": "Why?", "chosen": "Why? So.", "rejected": " Why?\nNo."}
    assert convert("local", whole).notes == ("answers begin with their prompt",)
    assert convert("local", {**whole, "rejected": "Why?"}).notes == ("an answer is its prompt",)
    assert convert("local", {**whole, "rejected": "No."}).notes == ()


def test_what_a_row_says_against_its_order_or_in_vain_is_noted() -> None:
    row = {"prompt": "Q", "chosen": "a", "rejected": "b"}
    for scores in ({"chosen_score": 1, "rejected_score": 2.5}, {"rating-chosen": 3, "rating-rejected": 4}):
        assert convert("local", row | scores).notes == ("chosen is scored below rejected",)
        assert convert("local", row | dict(zip(scores, [5, 1], strict=True))).notes == ()
    assert convert("local", {**row, "strength": 0.7}).notes == ("strength not used without dataset.soft_labels=true",)
    assert convert("local", {**row, "strength": 0.7}, soft_labels=True).notes == ()


@pytest.mark.parametrize("spaces", [None, 1])
def test_message_lists_written_as_text_are_read_as_lists(spaces: int | None) -> None:
    lists = {"prompt": talk("Q"), "chosen": talk("Q", "good")[1:], "rejected": talk("Q", "bad")[1:]}
    pair = convert("local", {name: json.dumps(found, indent=spaces) for name, found in lists.items()})
    assert (pair.prompt, pair.chosen, pair.rejected) == ((Message("user", "Q"),), "good", "bad")
    assert pair.notes == ("message list read from JSON text",)


def test_message_lists_that_python_printed_are_refused() -> None:
    printed = str(talk("Q"))
    assert refused("local", {"prompt": printed, "chosen": "a", "rejected": "b"}) == (Reason.unparsable, "prompt")
    both = {"chosen": str(talk("Q", "a")[1:]), "rejected": "[{'content': 'b', 'role': 'assistant'}\n {...}]"}
    assert refused("local", {"prompt": "Q", **both}) == (Reason.unparsable, "chosen")


def test_answers_that_only_look_like_messages_stay_texts() -> None:
    rows = {"chosen": '{"role": "manager", "content": 3}', "rejected": '{"role": "clerk", "content": 2}'}
    assert convert("local", {"prompt": "Q", **rows}).chosen == rows["chosen"]
    one = {"chosen": json.dumps(talk("Q", "a")), "rejected": "no list"}
    assert convert("local", {"prompt": "Q", **one}).chosen == one["chosen"]


def test_a_transcript_as_prompt_is_read_as_turns() -> None:
    prompt = "\n\nHuman: Hi\n\nAssistant: Yes?\n\nHuman: Why?\n\nAssistant:"
    turns = [("user", "Hi"), ("assistant", "Yes?"), ("user", "Why?")]
    for row in (
        {"prompt": prompt, "chosen": " a", "rejected": " b"},
        {"prompt": prompt, "chosen": f"{prompt} a", "rejected": f"{prompt} b"},
        {"prompt": prompt.removesuffix("\n\nAssistant:"), "chosen": "a", "rejected": "b"},
    ):
        pair = convert("local", row)
        assert [(turn.role, turn.content) for turn in pair.prompt] == turns
        assert (pair.chosen, pair.rejected) == ("a", "b")
        assert pair.notes == ("prompt read as a transcript of Human and Assistant",)
    other = prompt.replace("Why", "How")
    assert refused("local", {"prompt": prompt, "chosen": f"{other} a", "rejected": f"{other} b"}) == (
        Reason.prompts_differ,
        "chosen",
    )
    assert convert("local", {"prompt": "Human: what is it?", "chosen": "a", "rejected": "b"}).notes == ()
