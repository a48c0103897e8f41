"""Which engine a run takes is one line of its output, with the reason where it is not the one asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
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


def test_the_trainer_is_born_with_its_engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """TRL's constructor already finds the model computing as it will be trained, in either engine."""
    import torch
    from packed_models import random_pairs, tiny_model
    from tiny_trainers import make_trainer
    from trl import DPOConfig, DPOTrainer

    from dpo.engine.choice import Engine
    from dpo.engine.packed_forward import installed

    seen = []

    def look(trainer: Any, model: Any, **more: Any) -> None:
        seen.append((trainer.engine.name, installed(model), hasattr(model, "peft_config"), more.get("peft_config")))
        raise InterruptedError

    monkeypatch.setattr(DPOTrainer, "__init__", look)
    for name in ("packed", "plain"):
        args = DPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False)
        engine = Engine(None, lambda p, *_: [p], 1, name=name)
        with pytest.raises(InterruptedError):
            make_trainer(tiny_model("llama", torch.float32), args, random_pairs(2), tmp_path, engine)
    assert seen == [("packed", True, True, None), ("plain", False, True, None)]
