"""Full fine-tuning holds one model: nothing is loaded beside the weights that were asked for."""

from __future__ import annotations

import pytest
import tiny
from trl.trainer import dpo_trainer

from dpo.train import train


def test_no_second_model_is_loaded_for_full_fine_tuning(compose, tmp_path, monkeypatch):
    def load(*args: object, **kwargs: object) -> None:
        raise AssertionError(f"TRL loads {args}")

    monkeypatch.setattr(dpo_trainer, "create_model_from_path", load)
    monkeypatch.setenv("DPO_OUTPUTS", str(tmp_path))
    model, pairs = tiny.make_model(tmp_path / "model"), tiny.make_pairs(tmp_path / "pairs.jsonl", 12)
    words = ["lora=full", "dpo.max_steps=1", "dpo.batch_size=2", "hardware=cpu", "tracking=none", "dataset=local"]
    folder = train(compose("model=custom", f"model.path={model}", f"dataset.path={pairs}", *words))
    assert any((folder / "adapter").glob("*.safetensors"))


@pytest.mark.slow
def test_full_fine_tuning_of_the_embedded_default_trains(tmp_path):
    words = ["dpo=ipo", "lora=full", "dpo.learning_rate=1e-6", "dpo.max_steps=2", "dataset.limit=40", "tracking=none"]
    code, output = tiny.run("train", words, tmp_path)
    assert code == 0, output
    assert any((tiny.record(tmp_path)[0] / "adapter").glob("*.safetensors"))
