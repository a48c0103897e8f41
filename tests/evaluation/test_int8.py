"""A run on a base in 8 bits is measured in them: such layers round what goes in as well, dense ones would not."""

from __future__ import annotations

from pathlib import Path

import tiny

from dpo.evaluation.sides import load_sides
from dpo.modeling.modes import is_quantized


def test_a_run_in_8_bits_is_measured_as_it_was_trained(tmp_path: Path) -> None:
    model, pairs = tiny.make_model(tmp_path / "model"), tiny.make_pairs(tmp_path / "pairs.jsonl", 24)
    short = ("lora=int8", "dpo.max_steps=1", "dpo.eval_every=0")
    code, output = tiny.run("train", tiny.arguments(model, pairs, *short), tmp_path)
    assert code == 0, output
    run, _ = tiny.record(tmp_path)
    assert sum(is_quantized(module) for module in load_sides(run).policy.modules()) == 2 * 7
