"""Weights, gradients and optimizer spread over two real processes: the same run as one process, and what ends it."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import tiny
from safetensors.torch import load
from test_ranks import BY_TOKENS, EXACT, RANDOM
from torch.testing import assert_close


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("inputs")
    return tiny.make_model(folder / "model"), tiny.make_pairs(folder / "pairs.jsonl")


@pytest.fixture(scope="module")
def undisturbed(inputs, tmp_path_factory) -> Any:
    cwd = tmp_path_factory.mktemp("undisturbed")
    codes, output = tiny.run_ranks(tiny.arguments(*inputs, *RANDOM), cwd, parallel="fsdp")
    assert codes == [0, 0], output
    return tiny.outcome(cwd)


slow = pytest.mark.slow
WAYS = [
    ("fsdp", "lora=lora"),
    pytest.param("zero2", "lora=qlora", marks=slow),
    pytest.param("zero3", "lora=full dpo.learning_rate=1e-3", marks=slow),
    pytest.param("zero2", "lora=full dpo.learning_rate=1e-3 hardware.engine=plain", marks=slow),
    pytest.param("fsdp", "lora=qlora hardware.engine=plain", marks=slow),
    pytest.param("fsdp", "lora=lora lora.dora=true lora.rank=4", marks=slow),
    pytest.param("fsdp", "lora=lora hardware.activation_checkpointing=on", marks=slow),
    pytest.param("zero2", "lora=qlora hardware.activation_checkpointing=on", marks=slow),
]


@pytest.mark.parametrize(("parallel", "way"), WAYS)
def test_two_processes_equal_one(inputs, parallel, way, tmp_path):
    """Batches of 5 over 2 ranks, in different numbers of micro-batches, with gradients that get clipped."""
    more = ("hardware.precision=fp32", "dpo.batch_size=5", "hardware.token_budget=60", "dpo.max_grad_norm=0.05")
    argv = tiny.arguments(*inputs, *more, *way.split())
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    code, output = tiny.run("train", argv, one)
    assert code == 0, output
    codes, output = tiny.run_ranks(argv, two, parallel=parallel)
    assert codes == [0, 0], output

    (expected, expected_lines), (got, lines) = tiny.outcome(one), tiny.outcome(two)
    assert len(lines) == len(expected_lines)
    for mine, theirs in zip(lines, expected_lines, strict=True):
        assert mine.keys() == theirs.keys()
        for name, value in theirs.items():
            if name not in (*BY_TOKENS, "kind"):
                assert mine[name] == pytest.approx(value, rel=1e-3, abs=1e-5), (mine["step"], name)
    assert max(line.get("grad_norm", 0) for line in lines) > 0.05
    assert lines[-1]["loss"] < lines[0]["loss"] - 0.01
    mine, theirs = load(got), load(expected)
    assert mine.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert_close(mine[name], tensor, rtol=1e-3, atol=2e-5)
    # Half of everything lies on each: the step counters of AdamW alone are on both.
    whole, half = (tiny.record(cwd)[1]["footprint"] for cwd in (one, two))
    assert half["total"] == whole["total"]
    assert half["state_mb"] == pytest.approx(whole["state_mb"] / 2, rel=0.01)


@pytest.mark.parametrize(
    "place", [("step", 5), pytest.param(("norm", 7), marks=slow), pytest.param(("save", 2), marks=slow)], ids=str
)
def test_a_killed_rank_ends_the_run_which_continues_to_the_same_bits(inputs, undisturbed, place, tmp_path):
    argv = tiny.arguments(*inputs, *RANDOM)
    struck = 0 if place[0] == "save" else 1
    codes, output = tiny.run_ranks(argv, tmp_path, {struck: (*place, tiny.KILL)}, parallel="fsdp")
    assert codes[struck] == -signal.SIGKILL, output
    assert codes[1 - struck] == 1, output
    assert "another rank of this run is gone" in output
    codes, output = tiny.run_ranks(argv, tmp_path, parallel="fsdp")
    assert codes == [0, 0], output
    assert "continuing at step" in output
    assert tiny.outcome(tmp_path) == undisturbed


@slow
@pytest.mark.parametrize("place", ["step", "dev", "save"])
def test_a_signal_to_one_rank_stops_all_at_one_step(inputs, undisturbed, place, tmp_path):
    argv = tiny.arguments(*inputs, *RANDOM)
    who = 0 if place == "save" else 1
    codes, output = tiny.run_ranks(argv, tmp_path, {who: (place, 2, tiny.TERM)}, parallel="fsdp")
    assert codes == [143, 143], output
    codes, output = tiny.run_ranks(argv, tmp_path, parallel="fsdp")
    assert codes == [0, 0], output
    assert tiny.outcome(tmp_path) == undisturbed


@slow
def test_memory_that_does_not_do_ends_the_run_with_advice(inputs, tmp_path):
    codes, output = tiny.run_ranks(tiny.arguments(*inputs, *EXACT), tmp_path, {1: ("memory", 7, 0)}, parallel="fsdp")
    assert codes[1] == 6, output
    assert codes[0] == 1, output
    assert "a step is not retried" in output


@slow
def test_what_is_not_finite_on_one_rank_stops_all_before_the_step(inputs, tmp_path):
    codes, output = tiny.run_ranks(tiny.arguments(*inputs, *EXACT), tmp_path, {1: ("poison", 5, 0)}, parallel="fsdp")
    assert codes == [5, 5], output
    assert not (tiny.record(tmp_path)[0] / "adapter").exists()


@slow
def test_another_plan_is_refused_by_name(inputs, tmp_path):
    """Another plan is another run; told to continue this one, it would give the same step up to rounding only."""
    argv = tiny.arguments(*inputs, *EXACT)
    codes, output = tiny.run_ranks(argv, tmp_path, dict.fromkeys((0, 1), ("step", 5, tiny.TERM)))
    assert codes == [143, 143], output
    codes, output = tiny.run_ranks([*argv, f"resume={tiny.record(tmp_path)[0]}"], tmp_path, parallel="fsdp")
    assert codes == [4, 4], output
    assert "parallel was None, now fsdp" in output
