"""Which engine a run takes is one line of its output, with the reason where it is not the one asked for."""

from __future__ import annotations

from pathlib import Path

import tiny


def line_of(model: Path, folder: Path, *more: str) -> str:
    pairs = tiny.make_pairs(folder / "pairs.jsonl")
    code, output = tiny.run("train", tiny.arguments(model, pairs, *more), folder)
    assert code == 0, output
    (line,) = [line for line in output.splitlines() if " engine" in line and "micro-batch" in line]
    return line


def test_an_unverified_family_trains_in_the_plain_engine_and_says_why(tmp_path: Path) -> None:
    from transformers import AutoConfig, Olmo2Config, Olmo2ForCausalLM

    model = tiny.make_model(tmp_path / "model")
    words = AutoConfig.from_pretrained(model).vocab_size
    config = Olmo2Config(
        vocab_size=words,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        eos_token_id=2,
        bos_token_id=1,
        pad_token_id=2,
    )
    Olmo2ForCausalLM(config).save_pretrained(model)
    line = line_of(model, tmp_path, "dpo.max_steps=1")
    assert "plain engine because model type 'olmo2' is not verified for packed batches" in line


def test_the_packed_engine_says_its_budget_and_checkpointing(tmp_path: Path) -> None:
    line = line_of(tiny.make_model(tmp_path / "model"), tmp_path, "dpo.max_steps=1")
    assert "packed engine" in line
    assert "tokens a micro-batch" in line
    assert "activation checkpointing off" in line
