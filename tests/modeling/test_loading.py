"""Every tensor of a model or an adapter is accounted for wherever weights are loaded."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

from dpo.config.lora import Quantization, QuantType
from dpo.errors import CheckpointError, ConfigError
from dpo.modeling.device import Compute
from dpo.modeling.policy import load_base
from dpo.modeling.trained_adapter import put_on
from dpo.modeling.weights import resolve
from dpo.release.formats import Format, load_back

CPU = Compute("cpu", torch.float32)
NF4 = Quantization(bits=4, type=QuantType.nf4, double=True)
Tensors = dict[str, torch.Tensor]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tiny.make_model(tmp_path / "model")


def rewrite(file: Path, change: Callable[[Tensors], Tensors]) -> None:
    save_file({k: v.contiguous() for k, v in change(load_file(file)).items()}, file, {"format": "pt"})


def load(folder: Path, quantization: Quantization | None = None) -> Any:
    return load_base(resolve(str(folder), "main"), quantization, CPU, "sdpa")


def without(tensors: Tensors, name: str) -> Tensors:
    return {k: v for k, v in tensors.items() if k != f"model.{name}"}


def first_half(tensors: Tensors) -> Tensors:
    return dict(list(tensors.items())[: len(tensors) // 2])


BASES: dict[str, tuple[Callable[[Tensors], Tensors], str]] = {
    "half": (first_half, "missing: "),
    "none": (lambda t: {}, r"\d+ tensors missing: lm_head"),
    "one": (
        lambda t: {k: v for k, v in t.items() if k != "model.norm.weight"},
        r"1 tensor missing: model\.norm\.weight",
    ),
    "embeddings": (
        lambda t: without(t, "embed_tokens.weight"),
        r"model\.embed_tokens\.weight",
    ),
    "shape": (
        lambda t: {**t, "model.norm.weight": torch.ones(8)},
        r"1 tensor of another shape: model\.norm\.weight \[8\] for \[64\]",
    ),
    "bias": (
        lambda t: {**t, "model.layers.0.self_attn.q_proj.bias": torch.ones(64)},
        r"no place for: model\.layers\.0\.self_attn\.q_proj\.bias",
    ),
    "norm of queries": (
        lambda t: {**t, "model.layers.0.self_attn.q_norm.weight": torch.ones(16)},
        r"no place for: model\.layers\.0\.self_attn\.q_norm\.weight",
    ),
    "a third layer": (
        lambda t: t | {k.replace("layers.1.", "layers.2."): v.clone() for k, v in t.items() if "layers.1." in k},
        r"9 tensors that the model of its config\.json has no place for",
    ),
    "names of another class": (lambda t: {f"base_model.{k}": v for k, v in t.items()}, r"\d+ tensors missing: lm_head"),
}


@pytest.mark.parametrize("quantization", [None, NF4], ids=["lora", "qlora"])
@pytest.mark.parametrize("fault", BASES)
def test_a_base_with_other_tensors_than_its_model_is_refused(
    model: Path, fault: str, quantization: Quantization | None
) -> None:
    change, says = BASES[fault]
    rewrite(model / "model.safetensors", change)
    with pytest.raises(ConfigError, match=says) as caught:
        load(model, quantization)
    assert str(caught.value).startswith(f"model.path={model}: ")
    assert len(str(caught.value).splitlines()) <= 3


def test_a_tied_head_known_buffers_and_parts_of_other_models_are_no_fault(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "lm_head.weight" not in load_file(model / "model.safetensors")
    extra = {
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8),
        "score.weight": torch.ones(1, 64),
        "mtp.layers.0.weight": torch.ones(2, 2),
        "model.vision_tower.weight": torch.ones(2, 2),
    }
    rewrite(model / "model.safetensors", lambda t: t | extra)
    load(model)
    said = capsys.readouterr().err
    assert "left out what this model has no part for: model.vision_tower, mtp, score" in said
    config = model / "config.json"
    # Layers behind the last belong to predicting further tokens only where the config says so.
    config.write_text(json.dumps(json.loads(config.read_text()) | {"num_nextn_predict_layers": 1}))
    rewrite(model / "model.safetensors", lambda t: t | {"model.layers.2.mlp.up_proj.weight": torch.ones(128, 64)})
    load(model)
    assert "model.layers.2" in capsys.readouterr().err


def test_a_base_that_is_changed_while_it_is_loaded_is_refused(model: Path) -> None:
    weights = resolve(str(model), "main")
    rewrite(model / "model.safetensors", lambda t: {k: v + 1e-3 for k, v in t.items()})
    with pytest.raises(ConfigError, match="was changed while it was read"):
        load_base(weights, None, CPU, "sdpa")


def test_an_adapter_inside_a_base_is_not_loaded_unasked(model: Path) -> None:
    (model / "adapter_config.json").write_text("{}")
    with pytest.raises(ConfigError, match="a model and an adapter"):
        load(model)


def test_a_head_of_its_own_is_missed(model: Path) -> None:
    config = model / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"tie_word_embeddings": False}))
    with pytest.raises(ConfigError, match=r"1 tensor missing: lm_head\.weight"):
        load(model)


def test_a_conversion_of_embedded_weights_is_counted(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    import numpy as np

    from dpo.modeling.embedded import _convert

    (tmp_path / "package").mkdir()
    writer = gguf.GGUFWriter(tmp_path / "package" / "m.gguf", "llama")
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(16)
    writer.add_feed_forward_length(32)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(32)
    writer.add_tensor("token_embd.weight", np.zeros((32, 16), np.float32))
    writer.add_tensor("output_norm.weight", np.ones(16, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ConfigError, match=r"m\.gguf: 9 tensors missing: model\.layers\.0\."):
        _convert(tmp_path / "package" / "m.gguf", tmp_path / "converted")
    assert not (tmp_path / "converted").exists()


def test_an_exported_folder_is_counted_when_it_is_loaded_back(model: Path) -> None:
    rewrite(model / "model.safetensors", first_half)
    with pytest.raises(CheckpointError, match="tensors missing"):
        load_back(model, Format.bf16, "cpu", torch.float32)


@pytest.fixture
def adapter(model: Path, tmp_path: Path) -> Path:
    from peft import LoraConfig, get_peft_model

    settings = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    get_peft_model(load(model), settings).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


ADAPTERS: dict[str, tuple[Callable[[Tensors], Tensors], str]] = {
    "half": (first_half, "lacks 4 of 8 tensors"),
    "none": (lambda t: {}, "lacks 8 of 8 tensors"),
    "one": (lambda t: dict(list(t.items())[1:]), "lacks 1 of 8 tensors, the first base_model"),
    "more": (
        lambda t: t | {"base_model.model.lm_head.lora_A.weight": torch.ones(4, 64)},
        "has, and its adapter_config",
    ),
    "rank": (lambda t: {k: v[:2] if "lora_A" in k else v[:, :2] for k, v in t.items()}, "size mismatch|another shape"),
    "names": (lambda t: {k.removeprefix("base_model."): v for k, v in t.items()}, "lacks 8 of 8 tensors"),
}


@pytest.mark.parametrize("beside", ["default", "reference"])
@pytest.mark.parametrize("fault", ADAPTERS)
def test_an_adapter_with_other_tensors_than_its_settings_say_is_refused(
    model: Path, adapter: Path, tmp_path: Path, fault: str, beside: str
) -> None:
    base = load(model)
    if beside != "default":
        base = put_on(base, shutil.copytree(adapter, tmp_path / "whole"))
    change, says = ADAPTERS[fault]
    rewrite(adapter / "adapter_model.safetensors", change)
    with pytest.raises(CheckpointError, match=says) as caught:
        put_on(base, adapter, beside)
    assert str(caught.value).startswith(str(adapter))
    assert len(str(caught.value).splitlines()) <= 3


SETTINGS: dict[str, tuple[object, str]] = {
    "torn": ("{", "cannot be read as JSON"),
    "deep": ("[" * 100_000, "cannot be read as JSON"),
    "list": ([], "must hold a mapping"),
    "type": ({"peft_type": "IA3"}, "peft_type=IA3"),
    "typeless": ({"peft_type": 3}, "peft_type=3"),
    "rank in words": ({"r": "four"}, "r=four"),
    "rank 0": ({"r": 0}, "r=0"),
    "another rank": ({"r": 8}, "size mismatch|another shape"),
    "endless alpha": ({"lora_alpha": float("inf")}, "lora_alpha=inf"),
    "targets": ({"target_modules": [1]}, "target_modules="),
    "no such target": ({"target_modules": ["nope"]}, "does not fit its base"),
    "fewer targets": ({"target_modules": ["q_proj"]}, "has, and its adapter_config.json does not name, 4 of 4"),
    "more targets": ({"target_modules": ["q_proj", "v_proj", "k_proj"]}, "lacks 4 of 12 tensors"),
    "dora": ({"use_dora": True}, "lacks 4 of 12 tensors"),
}


@pytest.mark.parametrize("fault", SETTINGS)
def test_damaged_settings_of_an_adapter_are_one_line(model: Path, adapter: Path, fault: str) -> None:
    value, says = SETTINGS[fault]
    path = adapter / "adapter_config.json"
    if isinstance(value, dict):
        path.write_text(json.dumps(json.loads(path.read_text()) | value))
    else:
        path.write_text(value if isinstance(value, str) else json.dumps(value))
    with pytest.raises(CheckpointError, match=says):
        put_on(load(model), adapter)


def test_an_adapter_that_began_as_pissa_leaves_its_base_alone(model: Path, adapter: Path) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"init_lora_weights": "pissa"}))
    before = load_file(model / "model.safetensors")["model.layers.0.self_attn.q_proj.weight"]
    layer = put_on(load(model), adapter).base_model.model.model.layers[0].self_attn.q_proj
    assert torch.equal(layer.get_base_layer().weight, before)
