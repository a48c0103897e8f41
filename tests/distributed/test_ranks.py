"""Two real processes over gloo are one run: same figures, same adapter, one decision whatever happens to either."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load

from dpo.data.pair import TokenPair
from dpo.distributed.ranks import Ranks

EXACT = ("hardware.precision=fp32", "lora=lora", "dpo.batch_size=5")
BY_TOKENS = ("entropy", "mean_token_accuracy", "logits/chosen", "logits/rejected")
"""TRL's means over the tokens of a micro-batch, which depend on how pairs are cut into them in one process too."""
# Dropout, so that each rank's random states matter.
RANDOM = ("hardware.precision=fp32", "lora=lora", "dpo.batch_size=5", "lora.dropout=0.2")


@pytest.fixture(scope="session")
def inputs(tmp_path_factory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("inputs")
    return tiny.make_model(folder / "model"), tiny.make_pairs(folder / "pairs.jsonl")


@pytest.fixture(scope="session")
def undisturbed(inputs, tmp_path_factory) -> Any:
    cwd = tmp_path_factory.mktemp("undisturbed")
    codes, output = tiny.run_ranks(tiny.arguments(*inputs, *RANDOM), cwd)
    assert codes == [0, 0], output
    return tiny.outcome(cwd)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=20), st.integers(1, 5))
def test_shares_partition_a_step_about_evenly(lengths, size):
    pairs = [TokenPair(f"p{i}", [1] * n, [2], [3]) for i, n in enumerate(lengths)]
    shares = [Ranks(rank, size).share(pairs) for rank in range(size)]
    assert sorted(pair.id for share in shares for pair in share) == sorted(pair.id for pair in pairs)
    if len(pairs) >= size:
        assert all(shares)
    loads = [sum(len(pair.prompt_ids) + 2 for pair in share) for share in shares]
    assert max(loads) - min(loads) <= max(lengths) + 2


@pytest.mark.parametrize(
    "way",
    ["hardware.engine=packed", "hardware.engine=plain", pytest.param("lora=qlora", marks=pytest.mark.slow)],
)
def test_two_processes_equal_one(inputs, way, tmp_path):
    """Batches of 5 over 2 ranks, cut by a budget that gives the ranks different numbers of micro-batches."""
    argv = tiny.arguments(*inputs, *EXACT, way, "hardware.token_budget=60", "dpo.log_every=2")
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    code, output = tiny.run("train", argv, one)
    assert code == 0, output
    codes, output = tiny.run_ranks(argv, two)
    assert codes == [0, 0], output
    assert "dev at step 8" in output.split("--- rank 1")[0]
    assert "dev" not in output.split("--- rank 1")[1]  # only rank 0 tells

    (expected, expected_lines), (got, lines) = tiny.outcome(one), tiny.outcome(two)
    assert len(lines) == len(expected_lines) == 7
    for mine, theirs in zip(lines, expected_lines, strict=True):
        assert mine.keys() == theirs.keys()
        assert mine.pop("kind") == theirs.pop("kind")
        for name, value in theirs.items():
            if name in BY_TOKENS:
                continue
            assert mine[name] == pytest.approx(value, rel=1e-3, abs=1e-5), (mine["step"], name)
    assert lines[-1]["loss"] < 0.68  # it learned, so agreement means something
    mine, theirs = load(got), load(expected)
    assert mine.keys() == theirs.keys()
    for name, tensor in theirs.items():
        torch.testing.assert_close(mine[name], tensor, rtol=1e-3, atol=2e-5)
    folder, record = tiny.record(two)
    assert record["processes"] == 2
    assert len(record["attempts"]) == 1
    assert len(list(folder.glob("checkpoints/step-*"))) == len(list(tiny.record(one)[0].glob("checkpoints/step-*")))


@pytest.mark.parametrize(
    "places", [{0: ("step", 5)}, {1: ("norm", 7)}, pytest.param({0: ("save", 2)}, marks=pytest.mark.slow)], ids=str
)
def test_a_killed_rank_ends_the_run_which_continues_to_the_same_bits(inputs, undisturbed, places, tmp_path):
    argv = tiny.arguments(*inputs, *RANDOM)
    codes, output = tiny.run_ranks(argv, tmp_path, {rank: (*place, tiny.KILL) for rank, place in places.items()})
    (struck,) = places
    assert codes[struck] == -signal.SIGKILL, output
    assert codes[1 - struck] == 1, output
    assert "another rank of this run is gone" in output
    assert tiny.record(tmp_path)[1]["status"] in ("failed", "running")
    codes, output = tiny.run_ranks(argv, tmp_path)
    assert codes == [0, 0], output
    assert tiny.outcome(tmp_path) == undisturbed


@pytest.mark.parametrize("who", [(1,), (0, 1)], ids=str)
@pytest.mark.parametrize("place", [pytest.param("step", marks=pytest.mark.slow), "dev", "save"])
def test_a_signal_to_any_rank_stops_all_at_one_step(inputs, undisturbed, who, place, tmp_path):
    if place == "save" and who == (1,):
        pytest.skip("only rank 0 saves")
    argv = tiny.arguments(*inputs, *RANDOM)
    codes, output = tiny.run_ranks(argv, tmp_path, dict.fromkeys(who, (place, 2, tiny.TERM)))
    assert codes == [143, 143], output
    assert tiny.record(tmp_path)[1]["status"] == "interrupted"
    codes, output = tiny.run_ranks(argv, tmp_path)
    assert codes == [0, 0], output
    assert "continuing at step" in output
    assert tiny.outcome(tmp_path) == undisturbed


def test_what_is_not_finite_on_one_rank_stops_all_before_the_step(inputs, tmp_path):
    codes, output = tiny.run_ranks(tiny.arguments(*inputs, *EXACT), tmp_path, {1: ("poison", 5, 0)})
    assert codes == [5, 5], output
    folder, record = tiny.record(tmp_path)
    assert record["status"] == "diverged"
    assert "step 5" in record["reason"]
    assert not (folder / "adapter").exists()


def test_out_of_memory_on_one_rank_is_retried_by_all(inputs, tmp_path):
    argv, losses = tiny.arguments(*inputs, *EXACT), []
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    code, output = tiny.run("train", argv, one)
    assert code == 0, output
    codes, output = tiny.run_ranks(argv, two, {1: ("memory", 3, 0)})
    assert codes == [0, 0], output
    assert "the same step again" in output
    for cwd in (one, two):
        losses.append([line["loss"] for line in tiny.outcome(cwd)[1]])
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)


def test_a_full_disk_on_rank_0_ends_all_with_its_code(inputs, tmp_path):
    codes, output = tiny.run_ranks(tiny.arguments(*inputs, *EXACT), tmp_path, {0: ("disk", 2, 0)})
    assert codes == [7, 7], output
    assert tiny.record(tmp_path)[1]["status"] == "disk_full"


def test_another_number_of_ranks_is_refused_by_name(inputs, tmp_path):
    codes, output = tiny.run_ranks(
        tiny.arguments(*inputs, *EXACT), tmp_path, dict.fromkeys((0, 1), ("step", 5, tiny.TERM))
    )
    assert codes == [143, 143], output
    codes, output = tiny.run_ranks(tiny.arguments(*inputs, *EXACT), tmp_path, size=3)
    assert codes == [4, 4, 4], output
    assert "processes was 2, now 3" in output


def test_several_processes_without_parallel_are_refused(inputs, tmp_path):
    process = tiny.start(
        "train",
        tiny.arguments(*inputs),
        tmp_path,
        environment={"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"},
    )
    process.join(60)
    assert process.exitcode == 2
    assert "set hardware.parallel=ddp" in (tmp_path / "output.txt").read_text()
