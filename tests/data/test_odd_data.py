"""A run on odd data, from its start to an evaluation: it says what it read, and copes with nothing held out."""

from __future__ import annotations

import json
from pathlib import Path

import tiny


def test_training_says_what_was_read_and_holds_out_nothing(tmp_path: Path) -> None:
    model = tiny.make_model(tmp_path / "model")
    pairs = tiny.make_pairs(tmp_path / "pairs.jsonl", 12)
    rows = [json.loads(line) for line in pairs.read_text().splitlines()]
    rows[3]["chosen"] += " <|im_end|>"
    pairs.write_text("".join(json.dumps({**row, "question": "why?"}) + "\n" for row in rows))
    none = ("dataset.dev_fraction=0", "dataset.test_fraction=0", "dataset.max_length=4096", "dpo.max_steps=1")
    code, output = tiny.run("train", tiny.arguments(model, pairs, *none), tmp_path)
    assert code == 0, output
    assert "12 training pairs, 0 dev, 0 test" in output
    # The tokenizer of this tiny model has no way to write the token's characters as text.
    noted = "12 column question not read, 1 control token typed in text, 1 text altered by the tokenizer or unknown to"
    assert f"noted: {noted} it (ids in data.json)" in output
    assert "dataset.max_length=4096 is more than the 2048 positions of" in output
    [run] = tiny.folders(tmp_path)
    code, output = tiny.run("evaluate", [str(run)], tmp_path)
    assert (code, "holds out no test pairs" in output) == (3, True), output
