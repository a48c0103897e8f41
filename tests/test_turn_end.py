"""What was trained ends where it was taught to end: the template's turn end stops answers, whatever the tokenizer's
end of sequence is called."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny

TURN_END, EOS = 2, "<|endoftext|>"


@pytest.fixture(scope="module")
def taught(tmp_path_factory) -> Path:
    """A run whose base ends sequences with another token than its chat template ends turns, taught to answer `home`."""
    base = tmp_path_factory.mktemp("taught")
    tokenizer = tiny.make_tokenizer(EOS)
    model = tiny.make_model(base / "model", tokenizer)
    rows = [json.loads(line) for line in tiny.make_pairs(base / "pairs.jsonl", 60).read_text().splitlines()]
    (base / "pairs.jsonl").write_text("".join(json.dumps({**row, "chosen": "home"}) + "\n" for row in rows))
    words = ["dataset.test_fraction=0.3", "dpo=sft", "dpo.max_steps=40", "lora=full", "dpo.learning_rate=5e-3"]
    code, output = tiny.run("train", [*tiny.arguments(model, base / "pairs.jsonl"), *words], base)
    assert code == 0, output
    return tiny.record(base)[0]


def test_the_end_of_a_turn_is_a_fact_of_the_run(taught):
    assert json.loads((taught / "run.json").read_text())["end_of_turn"] == TURN_END


def test_answers_stop_at_the_turn_end_and_so_do_exports(taught, export_run, tmp_path):
    from dpo.evaluation.sides import load_sides

    sides = load_sides(taught)
    assert sides.tokenizer.eos_token == EOS
    assert sides.stop_ids == {TURN_END, sides.tokenizer.eos_token_id}
    assert sides.turn_end == TURN_END
    small = ["evaluation.prompts=3", "evaluation.max_new_tokens=8", "evaluation.temperature=0.05"]
    code, output = tiny.run(
        "evaluate", [f"run={taught}", *small, "evaluation.divergence_prompts=2", "evaluation.resamples=100"], tmp_path
    )
    assert code == 0, output
    rows = [json.loads(line) for line in (taught / "evaluation/test/answers.jsonl").read_text().splitlines()]
    answers = [row for row in rows if row["side"] == "policy"]
    assert all(row["finished"] for row in answers)
    assert all(TURN_END not in row["ids"] for row in rows)
    ends = json.loads((export_run(taught, "format=fp32") / "generation_config.json").read_text())["eos_token_id"]
    assert TURN_END in ends
    assert sides.tokenizer.eos_token_id in ends
