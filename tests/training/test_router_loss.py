"""A mixture of experts: what TRL adds so that its router uses them all is said, and is no part of the start's ln 2."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import tiny
from families import make

from dpo.data.pair import TokenPair
from dpo.training.checks.probe import router_loss_fails

PAIR = TokenPair("t:train:0", [1, 3, 5], [7, 9, 11], [8, 10])


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mixtral")
    assert make("mixtral", folder) is None
    return folder


def losses(model: Path, cwd: Path, *more: str) -> tuple[str, list[dict[str, float]]]:
    pairs = tiny.make_pairs(cwd / "pairs.jsonl", 24)
    few = ("lora=lora", "dpo.max_steps=2", "dpo.batch_size=2", "dataset.dev_fraction=0.3", "hardware.precision=fp32")
    code, output = tiny.run("train", tiny.arguments(model, pairs, *few, *more), cwd)
    assert code == 0, output
    return output, tiny.outcome(cwd)[1]


def test_the_router_loss_is_said_and_left_out_of_what_the_start_must_be(mixtral: Path, tmp_path: Path) -> None:
    output, rows = losses(mixtral, tmp_path)
    start = next(row for row in rows if row["kind"] == "eval")
    # Two experts a token of four, balanced or nearly: Mixtral's load balancing loss is about the number chosen.
    assert start["aux_loss"] == pytest.approx(2, abs=0.2)
    assert start["loss"] - 0.001 * start["aux_loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert f"router loss {0.001 * start['aux_loss']:.4f} in it" in output


def test_without_its_coefficient_the_start_is_ln_2(mixtral: Path, tmp_path: Path) -> None:
    output, rows = losses(mixtral, tmp_path, "dpo.trainer.router_aux_loss_coef=0")
    assert "router loss" not in output
    assert next(row for row in rows if row["kind"] == "eval")["loss"] == pytest.approx(math.log(2), abs=1e-4)


def test_a_family_that_trl_has_no_router_loss_for_is_found(mixtral: Path) -> None:
    from transformers import AutoModelForCausalLM
    from trl.trainer.utils import add_fused_lm_head

    model = AutoModelForCausalLM.from_pretrained(mixtral)
    add_fused_lm_head(model)
    assert not router_loss_fails(model, PAIR)
    model.config.num_experts_per_tok = 99
    assert router_loss_fails(model, PAIR)
