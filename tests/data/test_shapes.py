"""Five public shapes of today's rows go all the way: prepared, trained on, evaluated, exported, their ids shown."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
from conversations import TOOL, call, called, prepared_by_trl, result, says, templates, tokenizer, user
from data_options import dataset
from transformers import AutoTokenizer

from dpo.data.prepare import Prepared, prepare

Row = dict[str, Any]
COUNT = 8


def chat(number: int) -> Row:
    """OpenAI's and TRL's: messages, a call with its result inside the answer, tools as a list."""
    place = f"Town {number}"
    return {
        "tools": [TOOL], "prompt": [user(f"The weather in {place}?")],
        "chosen": [called(call(place)), result(f"{number} degrees"), says(f"It has {number} degrees.")],
        "rejected": [called(call(f"Elsewhere {number}")), result("snow"), says("It snows.")],
    }  # fmt: skip


def share_gpt(number: int) -> Row:
    """ShareGPT's: from and value, function_call and observation, tools as text."""
    asked = {"name": "weather", "arguments": {"place": f"Port {number}"}}
    return {
        "tools": json.dumps([TOOL]), "conversations": [{"from": "human", "value": f"Is it warm in Port {number}?"}],
        "chosen": [{"from": "function_call", "value": json.dumps(asked)},
                   {"from": "observation", "value": f"{number} degrees"}, {"from": "gpt", "value": "It is."}],
        "rejected": {"from": "gpt", "value": f"I do not know, {number}."},
    }  # fmt: skip


def whole(number: int) -> Row:
    """Two whole conversations that part at the last call; parallel calls, arguments as text."""
    shared = [user(f"Both of {number}?"), called(call("A"), call("B", name="call00002")), result("1"),
              result("2", "call00002"), says("One and two."), user(f"And {number} more?")]  # fmt: skip
    good, bad = call(f"C {number}", as_text=True), call("D", as_text=True)
    return {"tools": [TOOL], "chosen": [*shared, called(good)], "rejected": [*shared, called(bad)]}


def functions(number: int) -> Row:
    """The form before tools: functions, and a function_call without text."""
    asked = {"name": "weather", "arguments": json.dumps({"place": f"Village {number}"})}
    return {
        "functions": [TOOL["function"]], "prompt": [user(f"And Village {number}?")],
        "chosen": [{"role": "assistant", "content": None, "function_call": asked}],
        "rejected": [says(f"Ask somebody else, {number}.")],
    }  # fmt: skip


def reasoning(number: int) -> Row:
    """Reasoning beside the answer, and parts of a text."""
    return {
        "prompt": [user([{"type": "text", "text": "What is "}, {"type": "text", "text": f"{number} and one?"}])],
        "chosen": [says(f"{number + 1}.", reasoning_content=f"One more than {number}.")],
        "rejected": [says("No.", thinking="Why should I?")],
    }  # fmt: skip


SHAPES: list[Callable[[int], Row]] = [chat, share_gpt, whole, functions, reasoning]


def rows() -> Iterator[Row]:
    for number in range(COUNT):
        for shape in SHAPES:
            yield shape(number)


@pytest.mark.slow
def test_five_shapes_are_prepared_trained_on_evaluated_and_exported(tmp_path: Path) -> None:
    own = tokenizer(templates()["qwen3"])
    tiny.make_model(tmp_path / "model", own)
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows()))
    data = ["dataset=local", f"dataset.path={path}", "dataset.dev_fraction=0.1", "dataset.test_fraction=0.2"]
    model = ["model=custom", f"model.path={tmp_path / 'model'}"]
    code, output = tiny.run("prepare", [*model, *data, f"output={tmp_path / 'data'}"], tmp_path)
    assert code == 0, output
    assert "refused" not in output
    code, output = tiny.run(
        "train", [*model, *data, "tracking=none", "hardware=cpu", "dpo.max_steps=2", "dpo.batch_size=4"], tmp_path
    )
    assert code == 0, output
    folder, record = tiny.record(tmp_path)
    report = json.loads((folder / "data.json").read_text())
    assert sum(report["kept"].values()) == COUNT * len(SHAPES)
    assert report["seen_not_counted"] > 0
    options = {"path": str(path), "dev_fraction": 0.1, "test_fraction": 0.2}
    found = prepare(dataset("local", **options), AutoTokenizer.from_pretrained(tmp_path / "model"))
    assert found.fingerprint == report["fingerprint"]
    check_ids(own, found, report)
    code, output = tiny.run(
        "evaluate",
        [str(folder), "evaluation.prompts=4", "evaluation.max_new_tokens=4", "evaluation.resamples=100"],
        tmp_path,
    )
    assert code == 0, output
    samples = [json.loads(line) for line in next(folder.glob("evaluation/*/samples.jsonl")).read_text().splitlines()]
    assert any("tools" in sample for sample in samples)
    code, output = tiny.run("export", [str(folder), f"out={tmp_path / 'exported'}", "format=bf16"], tmp_path)
    assert code == 0, output
    assert record["fingerprints"]["data"] == report["fingerprint"]
    assert json.loads((tmp_path / "exported" / "certificate.json").read_text())["differences"]


def check_ids(own: Any, found: Prepared, report: Row) -> None:
    """What was trained on says all of each row; ids of the first shape are TRL's own."""
    pairs = {pair.id: pair for part in (found.train, found.dev, found.test) for pair in part}
    for place, row in enumerate(rows()):
        pair = pairs[f"local:train:{place}"]
        said = own.decode(pair.prompt_ids + pair.chosen_ids)
        number, shape = place // len(SHAPES), SHAPES[place % len(SHAPES)]
        wanted = {
            chat: [f'"place": "Town {number}"', f"{number} degrees", "The weather of a place."],
            share_gpt: [f'"place": "Port {number}"', f"{number} degrees", "The weather of a place."],
            whole: ['"place": "A"', '"place": "B"', f'"place": "C {number}"', "One and two."],
            functions: [f'"place": "Village {number}"', "The weather of a place."],
            reasoning: [f"What is {number} and one?", f"One more than {number}.", f"{number + 1}."],
        }[shape]
        assert [text for text in wanted if text not in said] == [], (shape.__name__, said)
        assert bool(pair.given[0]) is (shape in (chat, share_gpt))
        if shape is chat:
            prompt, chosen, rejected = prepared_by_trl(own, row)
            assert pair.prompt_ids == prompt
            assert chosen[: len(pair.chosen_ids)] == pair.chosen_ids
            assert rejected[: len(pair.rejected_ids)] == pair.rejected_ids
    assert {example["id"] for example in report["examples"]} <= pairs.keys()
