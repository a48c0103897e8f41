"""A message's fields and parts are carried, or refused by name: nothing is left out in silence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conversations import TOOL, call, called, result, says, templates, tokenizer, user
from data_options import dataset

from dpo.data.pair import Pair
from dpo.data.pair_file import from_line, to_line
from dpo.data.prepare import prepare
from dpo.data.refusal import Reason, Refusal
from dpo.data.review import write_pairs
from dpo.data.sources import SOURCES
from dpo.data.synthetic.prompts import from_file
from dpo.errors import DataError
from dpo.evaluation.judges.interface import PairItem
from dpo.evaluation.judges.rubric import compare_question
from dpo.evaluation.responses import read_responses

LOCAL = dataset("local", path="x")
GOOD, BAD = [says("good")], [says("bad")]
PART = {"type": "text", "text": "What is "}


def row(*prompt: Any, chosen: Any = GOOD, rejected: Any = BAD, **more: Any) -> dict[str, Any]:
    return {"prompt": list(prompt or [user("q")]), "chosen": chosen, "rejected": rejected, **more}


def pair_of(one: dict[str, Any]) -> Pair:
    found = SOURCES["local"](one, "r", LOCAL)
    assert isinstance(found, Pair), found
    return found


REFUSED = [
    (row(user([PART, {"type": "image_url", "image_url": {"url": "x"}}])), Reason.media, "prompt[0].content[1]"),
    (row(user([{"type": "input_audio", "input_audio": "x"}])), Reason.media, "prompt[0].content[0]"),
    (row(images=["x.png"]), Reason.media, "images"),
    (row(chosen=[says("good", weight=1)]), Reason.field, "chosen[0].weight"),
    (row(chosen=[says("good", audio={"id": "x"})]), Reason.field, "chosen[0].audio"),
    (row(user([{**PART, "cache_control": {"type": "x"}}])), Reason.field, "prompt[0].content[0]"),
    (row(user([{"type": "tool_use", "input": {"a": 1}}])), Reason.field, "prompt[0].content[0]"),
    (row(chosen=[called({**call(), "extra": 1})]), Reason.field, "chosen[0].tool_calls[0].extra"),
    (row(chosen=[called({**call(), "type": "custom"})]), Reason.field, "chosen[0].tool_calls[0].type"),
    (row({**user("q"), "tool_calls": [call()]}), Reason.roles, "prompt[0]"),
    (row(chosen=[says("good", reasoning_content="a", thinking="b")]), Reason.given_twice, "chosen[0].thinking"),
    (row(chosen=[called(), result()]), Reason.roles, "chosen"),
    (row(chosen=[result(), says("x")]), Reason.prompts_differ, "chosen"),
    (row(tools='["weather"]'), Reason.unparsable, "tools[0]"),
    (row(tools="weather"), Reason.unparsable, "tools"),
]


@pytest.mark.parametrize(("one", "reason", "field"), REFUSED, ids=[f"{r.name} {f}" for _, r, f in REFUSED])
def test_what_cannot_be_carried_is_named(one: dict[str, Any], reason: Reason, field: str) -> None:
    found = SOURCES["local"](one, "r", LOCAL)
    assert isinstance(found, Refusal)
    assert (found.reason, found.field) == (reason, field)


@pytest.mark.parametrize("source", ["hh_rlhf", "webgpt", "shp", "synthetic", "helpsteer3"])
def test_a_source_without_tools_or_pictures_does_not_pass_over_them(source: str) -> None:
    texts = {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b", "prompt": "q",
             "subject": "s", "post_id": "p", "history": "q", "human_ref_A": "a", "human_ref_B": "b", "labels": 1,
             "score_A": 4, "score_B": 1, "score_ratio": 4.0, "question": {"full_text": "q"}, "answer_0": "a",
             "answer_1": "b", "score_0": 1, "score_1": -1, "context": [user("q")], "response1": "a", "response2": "b",
             "overall_preference": -1}  # fmt: skip
    own = dataset(source)
    assert isinstance(SOURCES[source](texts, "r", own), Pair)
    for more, field in (({"tools": [TOOL]}, "tools"), ({"image": "x.png"}, "image")):
        found = SOURCES[source]({**texts, **more}, "r", own)
        assert isinstance(found, Refusal)
        assert found.field == field


def test_fields_that_say_nothing_are_no_fields() -> None:
    bare = pair_of(row())
    padded = {"tool_calls": None, "name": "", "audio": None, "function_call": {}, "annotations": []}
    assert pair_of(row({**user("q"), **padded}, tools=None, images=[])) == bare
    assert pair_of(row(user([{"type": "text", "text": "q", "image": None}]))) == bare


SHAPES = {
    "openai": row(user("the weather?"), chosen=[called(), result(), says("sunny")], tools=[TOOL]),
    "arguments as text": row(user("the weather?"), chosen=[called(call(as_text=True)), result(), says("sunny")],
                             tools=json.dumps([TOOL])),
    "sharegpt": {
        "conversations": [{"from": "human", "value": "the weather?"}], "tools": json.dumps([TOOL]),
        "chosen": [{"from": "function_call", "value": '{"name": "weather", "arguments": {"place": "Rome"}}'},
                   {"from": "observation", "value": "sunny, 20 degrees"}, {"from": "gpt", "value": "sunny"}],
        "rejected": [{"from": "gpt", "value": "bad"}],
    },
    "implicit prompt": {
        "chosen": [user("the weather?"), called(), result(), says("sunny")], "tools": [TOOL],
        "rejected": [user("the weather?"), says("bad")],
    },
    "old call": row(user("the weather?"), tools=[TOOL], chosen=[
        {"role": "assistant", "content": None, "function_call": {"name": "weather", "arguments": {"place": "Rome"}}},
        {"role": "tool", "content": "sunny, 20 degrees"}, says("sunny")]),
}  # fmt: skip


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "kind", [pytest.param("jsonl", marks=SLOW), pytest.param("json", marks=SLOW), "csv", "parquet"]
)
def test_every_shape_and_file_gives_the_same_ids(kind: str, tmp_path: Path) -> None:
    """Calls, results and tools from public shapes, in every kind of file, and again from what was written of them."""
    found = set()
    for name, one in SHAPES.items():
        path = write(tmp_path / f"{name.replace(' ', '_')}.{kind}", one)
        options = {"path": str(path), "dev_fraction": 0.0, "test_fraction": 0.0}
        data = prepare(dataset("local", **options), tokenizer(templates()["qwen2_5"]), tmp_path / "cache")
        (pair,) = data.train
        assert pair.given[0], name
        found.add(str(pair.content))
        written = tokenizer(templates()["qwen2_5"]).decode(pair.prompt_ids + pair.chosen_ids)
        for form in ("jsonl", "parquet"):
            write_pairs(data, tmp_path, form)
            again = dataset("local", **{**options, "path": str(tmp_path / f"pairs-train.{form}")})
            (same,) = prepare(again, tokenizer(templates()["qwen2_5"]), tmp_path / "cache").train
            assert same.content == pair.content, (name, form)
    assert len(found) == 1
    assert "null" not in written


def write(path: Path, one: dict[str, Any]) -> Path:
    if path.suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        # Another row's arguments and tools make each struct a union, whose other fields are null in this one.
        other = json.loads(json.dumps(one).replace('"place"', '"town"').replace("required", "needed"))
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([one, other])[:1], path)
    elif path.suffix == ".csv":
        import csv

        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(one))
            writer.writeheader()
            writer.writerow({k: v if isinstance(v, str) else json.dumps(v) for k, v in one.items()})
    else:
        path.write_text(json.dumps([one] if path.suffix == ".json" else one))
    return path


def test_a_pair_is_read_back_from_disk_as_it_was() -> None:
    one = pair_of(row(user([PART, {"type": "text", "text": "it?"}]), called(), result(), tools=[TOOL],
                      chosen=[says("good", reasoning_content="hm")]))  # fmt: skip
    assert from_line(to_line(one)) == one


def test_one_call_and_two_results_part_before_the_call() -> None:
    """A tool's words are no choice of the policy, so answers that differ in them begin with the call before."""
    one, other = [user("q"), called(), result("sun"), says("sun")], [user("q"), called(), result("rain"), says("rain")]
    pair = pair_of({"chosen": one, "rejected": other})
    assert [turn.role for turn in pair.prompt] == ["user"]
    assert len(pair.chosen) == len(pair.rejected) == 3


def test_files_of_prompts_and_of_answers_refuse_by_name_what_they_cannot_carry(tmp_path: Path) -> None:
    prompts, answers = tmp_path / "prompts.jsonl", tmp_path / "answers.jsonl"
    prompts.write_text(json.dumps({"prompt": "q", "tools": [TOOL]}))
    with pytest.raises(DataError, match="`tools` is not read here"):
        from_file(prompts)
    answers.write_text(json.dumps({"messages": [user([{"type": "image", "image": "x"}])], "response": "a"}))
    with pytest.raises(DataError, match=r"answers.jsonl:1/messages\[0\].content\[0\]: picture, sound or video"):
        read_responses(answers, None, None, [], None)
    answers.write_text(json.dumps({"messages": [user("q"), called(), result()], "response": "a", "tools": [TOOL]}))
    (item,) = read_responses(answers, None, None, [], None).items
    shown = PairItem("x", item.prompt, "a", "b", tools=item.tools).asked
    asked = compare_question(shown, "a", "b", False, 0).messages[1].content
    assert "The weather of a place." in asked
    assert '[calls weather({"place": "Rome"})]' in asked
    assert "tool: sunny, 20 degrees" in asked


def test_what_a_tool_wrote_counts_where_that_is_asked_for(tmp_path: Path) -> None:
    """As TRL counts it: the same ids, and every token of an answer in its log-prob and its length."""
    path = write(tmp_path / "rows.json", SHAPES["openai"])
    options = {"path": str(path), "dev_fraction": 0.0, "test_fraction": 0.0}
    seen, counted = (
        prepare(dataset("local", **options, count_tool_tokens=all_of_it), tokenizer(templates()["qwen2_5"]), tmp_path)
        for all_of_it in (False, True)
    )
    (one,), (other,) = seen.train, counted.train
    assert (one.prompt_ids, one.chosen_ids) == (other.prompt_ids, other.chosen_ids)
    given = tokenizer(templates()["qwen2_5"]).decode([one.chosen_ids[i] for i in range(*one.given[0][0])])
    assert "sunny, 20 degrees" in given
    assert "weather" not in given  # the call is the policy's own
    assert other.counted[0] == len(other.chosen_ids) == one.counted[0] + seen.report["seen_not_counted"]
    assert counted.report["seen_not_counted"] == 0
    assert seen.report["lengths"]["train"]["chosen"]["1"] == one.counted[0]
    assert seen.fingerprint != counted.fingerprint
