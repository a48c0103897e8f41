"""The step benchmark's verdict on its arms' losses, and its exit code."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

import bench_step

from dpo.data.pair import TokenPair

PAIRS = [TokenPair(f"p:{i}", [1, 2, 3], [4, 5], [6]) for i in range(4)]


def verdict(folder: Path, dtype: str, ours: list[float], trl: list[float]) -> dict[str, Any]:
    from transformers import LlamaConfig

    LlamaConfig(num_hidden_layers=2, hidden_size=64, num_attention_heads=4).save_pretrained(folder)
    options = argparse.Namespace(model=str(folder), dtype=dtype, threads=1)
    losses = {"trl_default": trl, "trl_tuned": trl, "ours": ours, "exact": [0.69, 0.68]}
    clock = {"trl_default": [4.0, 6.0], "trl_tuned": [2.0, 2.0], "ours": [1.0, 1.0]}
    return bench_step.summary(options, PAIRS, losses, clock, clock, {}, 1e9)


@pytest.mark.parametrize(
    ("dtype", "ours", "trl", "agree"),
    [
        ("float32", [0.6901, 0.6801], [0.69, 0.68], True),
        ("float32", [0.70, 0.68], [0.69, 0.68], False),
        ("float32", [0.69, 0.68], [0.69, 0.70], False),
        ("bfloat16", [0.70, 0.68], [0.69, 0.69], True),
        ("bfloat16", [0.72, 0.68], [0.69, 0.69], False),
    ],
)
def test_losses_agree(tmp_path: Path, dtype: str, ours: list[float], trl: list[float], agree: bool) -> None:
    assert verdict(tmp_path, dtype, ours, trl)["losses_agree"] is agree


def test_ratios_are_pairs_a_second_ours_over_theirs(tmp_path: Path) -> None:
    result = verdict(tmp_path, "float32", [0.69, 0.68], [0.69, 0.68])
    assert result["ratios"]["trl_default"] == {"median": 5.0, "low": 4.0, "high": 6.0}
    assert result["ratios"]["trl_tuned"] == {"median": 2.0, "low": 2.0, "high": 2.0}
    assert result["pairs_per_second"]["ours"] == 2.0


def test_disagreeing_arms_end_it_with_an_error(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as stop:
        bench_step.finish(verdict(tmp_path, "float32", [0.8, 0.68], [0.69, 0.68]), tmp_path / "out.json")
    assert "disagree" in str(stop.value)
    assert '"losses_agree": false' in (tmp_path / "out.json").read_text()
