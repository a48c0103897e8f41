"""Full fine-tuning holds one model: nothing is loaded beside the weights that were asked for."""

from __future__ import annotations

import hashlib
import json
import shutil

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from trl.trainer import dpo_trainer

from dpo.errors import CheckpointError
from dpo.modeling.loading import check_restored
from dpo.train import train
from dpo.training.resumable import AS_HERE


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


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """(a model with a tied head, the folder of its checkpoint)."""
    from transformers import AutoModelForCausalLM

    root = tmp_path_factory.mktemp("saved")
    model = AutoModelForCausalLM.from_pretrained(tiny.make_model(root / "model"))
    model.save_pretrained(root / "step-1", **AS_HERE)
    return model, root / "step-1"


NORM = "model.norm.weight"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: dict(list(t.items())[: len(t) // 2]), "tensors missing"),
        (lambda t: {k: v for k, v in t.items() if k != NORM}, f"1 tensor missing: {NORM}"),
        (lambda t: {k: v for k, v in t.items() if "embed" not in k}, "1 tensor missing: model.embed_tokens.weight"),
        (lambda t: t | {"mtp.weight": torch.ones(2)}, "1 tensor that this model has no place for: mtp.weight"),
        (lambda t: t | {NORM: torch.ones(2)}, f"1 tensor of another shape: {NORM}"),
    ],
)
def test_every_tensor_of_a_whole_models_checkpoint_is_counted(saved, tmp_path, change, says):
    model, folder = saved
    check_restored(model, folder)
    damaged = shutil.copytree(folder, tmp_path / "step-1")
    file = damaged / "model.safetensors"
    save_file({k: v.contiguous() for k, v in change(load_file(file)).items()}, file)
    with pytest.raises(CheckpointError, match=says) as caught:
        check_restored(model, damaged)
    assert caught.value.exit_code == 4


def test_experts_are_saved_by_the_names_they_are_restored_by(tmp_path):
    """Published, each expert is a tensor; in the model all are one, which would stay as it was."""
    from transformers import AutoModelForCausalLM, Qwen3MoeConfig

    config = Qwen3MoeConfig(
        vocab_size=32, hidden_size=16, intermediate_size=16, moe_intermediate_size=8, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, head_dim=8, num_experts=4, num_experts_per_tok=2,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(tmp_path / "step-1", **AS_HERE)
    check_restored(model, tmp_path / "step-1")
    model.save_pretrained(tmp_path / "published")
    with pytest.raises(CheckpointError, match=r"missing: model\.layers\.0\.mlp\.experts"):
        check_restored(model, tmp_path / "published")


def test_resuming_full_fine_tuning_from_a_checkpoint_that_lacks_tensors_ends_with_4(tmp_path):
    model, pairs = tiny.make_model(tmp_path / "model"), tiny.make_pairs(tmp_path / "pairs.jsonl", 20)
    words = tiny.arguments(model, pairs, "lora=full", "dpo.max_steps=2", "dpo.save_every=1", "dpo.eval_every=0")
    code, output = tiny.run("train", words, tmp_path, ("step", 2, tiny.KILL))
    assert code < 0, output
    step = tiny.record(tmp_path)[0] / "checkpoints" / "step-1"
    file, manifest = step / "model.safetensors", json.loads((step / "manifest.json").read_text())
    save_file({k: v for k, v in load_file(file).items() if "layers.1" not in k}, file)
    # As one whose saving went wrong: the manifest is true to the file.
    manifest["files"][file.name] = {
        "size": file.stat().st_size,
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
    }
    manifest.pop("seal")
    text = json.dumps(manifest, sort_keys=True, separators=(",", ":"))
    manifest["seal"] = hashlib.sha256(text.encode()).hexdigest()
    (step / "manifest.json").write_text(json.dumps(manifest))
    code, output = tiny.run("train", words, tmp_path)
    assert code == 4, output
    assert "9 tensors missing: model.layers.1." in output
    assert "Traceback" not in output
