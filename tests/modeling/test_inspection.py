"""The model trained is the model configured: what is held and matched is compared with what was asked, in words."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from dpo.config.lora import FullTraining, Lora, Quantization, QuantType
from dpo.errors import ConfigError
from dpo.modeling.device import Compute
from dpo.modeling.inspection import adapted, adapting, check_targets, excluded, inspect, outside_text
from dpo.modeling.policy import load_base, lora_config
from dpo.modeling.reach import describe, silent_layers
from dpo.modeling.shape import shape_of
from dpo.modeling.stored import check_stored, stored_quantization
from dpo.modeling.weights import Weights

CPU = Compute("cpu", torch.float32)
NF4 = Quantization(4, QuantType.nf4, True)


def lora(quantization: Quantization | None = None, targets: Any = "all-linear", exclude: Any = None, **more) -> Lora:
    settings = {"rank": 4, "alpha": 8, "dropout": 0.0, "rslora": False, "dora": False, **more}
    return Lora(quantization=quantization, target_modules=targets, exclude_modules=exclude, **settings)


def made(kind: str, **more: Any) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    shape = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    shape |= {"num_attention_heads": 2, "num_key_value_heads": 1, "tie_word_embeddings": True}
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**shape, **more}))


def experts() -> Any:
    return made("qwen3_moe", num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, head_dim=16)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tiny.make_model(tmp_path_factory.mktemp("model") / "plain")


def weights(folder: Path) -> Weights:
    return Weights(folder, str(folder), None, "")


@pytest.fixture(scope="module")
def in_4_bits(folder, tmp_path_factory) -> Path:
    """The model stored by bitsandbytes in NF4."""
    from transformers import AutoTokenizer

    out = tmp_path_factory.mktemp("model") / "nf4"
    load_base(weights(folder), NF4, CPU, "sdpa").save_pretrained(out)
    AutoTokenizer.from_pretrained(folder).save_pretrained(out)
    return out


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["q_proj", "v_porj"], "no module v_porj; nearest: v_proj"),
        (["query_key_value"], "no module query_key_value; allowed: down_proj"),
        (".*query.*", r"no module \.\*query"),
        (["q_proj", "lm_head"], "lm_head is the LM head"),
        (["q_proj", "embed_tokens"], "embed_tokens is tied to the LM head"),
        (["self_attn"], "self_attn is a LlamaAttention, which takes no adapter"),
        (["norm"], "norm is a LlamaRMSNorm, which takes no adapter"),
    ],
)
def test_a_target_that_cannot_be_adapted_is_named(names, says):
    with pytest.raises(ConfigError, match=says) as caught:
        check_targets(made("llama"), lora(targets=names))
    assert len(str(caught.value).splitlines()) <= 3


def test_a_pattern_and_an_exclude_list_choose_modules():
    from peft import get_peft_model

    chosen = lora(targets=r".*layers\.1\..*_proj", exclude=["up_proj", "o_proj"])
    model = made("llama")
    check_targets(model, chosen)
    adapted_model = get_peft_model(model, lora_config(chosen, excluded(model, chosen)))
    assert adapted(adapted_model, chosen) == "adapters on 5 linear layers"
    with pytest.raises(ConfigError, match=r"lora\.exclude_modules: the model has no module up_porj; nearest: up_proj"):
        check_targets(made("llama"), lora(exclude=["up_porj"]))


@pytest.mark.parametrize("value", ["q_proj", "all-liner", "''", "[]", "3", "'(q_proj'", "[1]"])
def test_what_is_neither_a_list_nor_a_pattern_is_a_config_error(compose, value):
    with pytest.raises(ConfigError, match=r"lora\.target_modules="):
        compose("lora=lora", f"lora.target_modules={value}")


@pytest.mark.parametrize(("kind", "more"), [("falcon", {}), ("qwen3_moe", {"num_experts": 4, "head_dim": 16})])
def test_a_base_that_would_stay_in_16_bits_is_not_called_quantized(tmp_path, kind, more):
    made(kind, **more).save_pretrained(tmp_path)
    model = load_base(weights(tmp_path), NF4, CPU, "sdpa")
    with pytest.raises(ConfigError, match=r"quantizes only \d+% of the weights .*\nuse lora=lora"):
        inspect(model, lora(NF4), "sdpa")


def test_the_line_says_how_layers_are_held(folder, in_4_bits):
    assert inspect(load_base(weights(folder), None, CPU, "sdpa"), lora(), "sdpa") == "layers in float32"
    held = load_base(weights(folder), NF4, CPU, "sdpa")
    assert inspect(held, lora(NF4), "sdpa") == "layers in 4 bits (nf4, double quantization)"
    for other in (None, Quantization(4, QuantType.fp4, True), Quantization(8, None, False)):
        with pytest.raises(ConfigError, match="held in nf4 with double quantization"):
            inspect(held, lora(other), "sdpa")


def test_a_base_stored_in_few_bits_is_what_is_recorded(folder, in_4_bits):
    assert stored_quantization(folder, "x") is None
    assert stored_quantization(in_4_bits, "x") == NF4
    check_stored(weights(in_4_bits), lora(NF4))
    for other in (lora(), lora(Quantization(8, None, False)), FullTraining(quantization=None)):
        with pytest.raises(ConfigError, match="use lora=qlora, or take the 16-bit original"):
            check_stored(weights(in_4_bits), other)


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("quantization_config", {"quant_method": "gptq", "bits": 4}, "GPTQ"),
        ("quantization_config", {"quant_method": "awq", "bits": 4}, "AWQ"),
        ("quantization_config", {"quant_method": "fp8"}, "FP8"),
        ("quantization_config", {"quant_method": "mxfp4"}, "MXFP4"),
        ("quantization_config", {"quant_method": "compressed-tensors"}, "COMPRESSED-TENSORS"),
        ("compression_config", {"format": "pack-quantized"}, "a format of its own"),
        ("quantization", {"group_size": 64, "bits": 4}, "a format of its own"),
        ("text_config", {"quantization_config": {"quant_method": "gptq"}}, "GPTQ"),
    ],
)
def test_weights_in_a_foreign_format_are_refused_in_words(tmp_path, key, value, says):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", key: value}))
    with pytest.raises(ConfigError, match=f"stored in {says}, which cannot be trained on") as caught:
        check_stored(weights(tmp_path), lora())
    assert len(str(caught.value).splitlines()) == 2


def test_experts_train_and_merge_and_what_they_cannot_take_is_said():
    from peft import get_peft_model

    from dpo.release.merge import merge

    check_targets(experts(), lora())
    for more, says in (({"dropout": 0.1}, "lora.dropout: experts"), ({"dora": True}, "lora.dora: experts")):
        with pytest.raises(ConfigError, match=says):
            check_targets(experts(), lora(**more))
    with pytest.raises(ConfigError, match="PEFT cannot adapt this model"), adapting():
        check_targets(experts(), lora(targets=["gate_proj"]))
    model = get_peft_model(experts(), lora_config(lora())).eval()
    assert adapted(model, lora()).endswith("and 6 parameters")
    ids = torch.tensor([[1, 5, 9, 30, 2]])
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.3)
        before = model(ids).logits
        assert torch.allclose(merge(model, lambda total: total)(ids).logits, before, atol=1e-4)


def test_what_text_does_not_pass_through_is_left_out():
    from peft import get_peft_model
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    text = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 16}
    text |= {"num_attention_heads": 2, "num_key_value_heads": 1}
    sight = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    sight |= {"image_size": 28, "patch_size": 14}
    model = Gemma3ForConditionalGeneration(Gemma3Config(text_config=text, vision_config=sight, mm_tokens_per_image=4))
    assert outside_text(model) == ["model.vision_tower", "model.multi_modal_projector"]
    assert "left out as text alone does not reach it" in inspect(model, lora(), "sdpa")
    inspect(model, FullTraining(quantization=None), "sdpa")
    assert not any(parameter.requires_grad for parameter in model.model.vision_tower.parameters())
    chosen = lora(exclude=["up_proj"])
    trained = get_peft_model(model, lora_config(chosen, excluded(model, chosen)))
    names = [name for name, parameter in trained.named_parameters() if parameter.requires_grad]
    assert names
    assert not [name for name in names if "vision" in name or "up_proj" in name]


def test_a_family_without_sdpa_falls_back_to_eager_and_says_so(tmp_path):
    made("gemma2", head_dim=16).save_pretrained(tmp_path)
    model = load_base(weights(tmp_path), None, CPU, "sdpa")
    assert "attention eager, as gemma2 has no sdpa" in inspect(model, lora(), "sdpa")
    with pytest.raises(ConfigError, match=r"hardware\.attention=flash_attention_2"):
        load_base(weights(tmp_path), None, CPU, "flash_attention_2")


def test_a_stored_base_trains_evaluates_and_exports(in_4_bits, tmp_path):
    pairs = tiny.make_pairs(tmp_path / "pairs.jsonl")
    words = tiny.arguments(in_4_bits, pairs, "dataset.test_fraction=0.3", "dpo.max_steps=2", "dpo.batch_size=2")
    code, output = tiny.run("train", [*words, "lora=qlora"], tmp_path)
    assert code == 0, output
    assert "layers in 4 bits (nf4, double quantization), adapters on 14 linear layers" in output
    run, _ = tiny.record(tmp_path)
    code, output = tiny.run("export", [f"run={run}", "resamples=100", "format=fp32"], tmp_path)
    assert code == 0, output
    assert "quantization_config" not in json.loads((run / "export/fp32/config.json").read_text())
    code, output = tiny.run("train", [*words, "lora=lora"], tmp_path)
    assert code == 2
    assert "its weights lie on disk in 4 bits" in output


@pytest.mark.parametrize("kind", [torch.float8_e4m3fn, torch.int8])
def test_few_bits_without_their_scales_are_refused(folder: Path, tmp_path: Path, kind: torch.dtype) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    save_file({n: t.to(kind) if "proj" in n else t for n, t in tensors.items()}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    with pytest.raises(ConfigError, match=r"lies in (F8_E4M3|I8), and its config.json names no quantization"):
        check_stored(weights(tmp_path), lora())


def test_a_table_of_places_is_no_weight(folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, "table": torch.zeros(4, 2, dtype=torch.int64)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    check_stored(weights(tmp_path), lora())


def test_attention_to_an_encoder_that_is_not_there_gets_no_adapters() -> None:
    from transformers import BartConfig, BartForCausalLM

    size = {"d_model": 16, "decoder_layers": 2, "decoder_attention_heads": 2, "decoder_ffn_dim": 16, "vocab_size": 32}
    model = BartForCausalLM(BartConfig(**size))
    left = excluded(model, lora(), silent_layers(model, lora()))
    assert isinstance(left, str)
    names = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    assert {re.sub(r".*layers\.\d\.", "", name) for name in names if re.fullmatch(left, name)} == {
        f"encoder_attn.{part}_proj" for part in ("q", "k", "v", "out")
    }


def test_weights_that_a_kernel_reads_past_an_adapter_get_none() -> None:
    from transformers import FalconMambaConfig, FalconMambaForCausalLM

    size = {"hidden_size": 16, "num_hidden_layers": 1, "state_size": 4, "vocab_size": 32}
    model = FalconMambaForCausalLM(FalconMambaConfig(**size))
    left = excluded(model, lora())
    assert isinstance(left, str)
    found = {name.rpartition(".")[2] for name, _ in model.named_modules() if re.fullmatch(left, name)}
    assert found == {"out_proj", "conv1d"}
    assert excluded(model, lora(targets=["in_proj"])) is None


def test_sizes_that_differ_from_layer_to_layer_count_as_the_largest() -> None:
    from transformers import LlamaConfig

    size = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "head_dim": 8}
    config = LlamaConfig(**size, per_layer_config={1: {"head_dim": 12}})
    assert shape_of(config).head == 12


@pytest.fixture(scope="module")
def jamba() -> Any:
    from transformers import JambaConfig, JambaForCausalLM

    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    mixer = {"num_key_value_heads": 2, "mamba_d_state": 4, "attn_layer_period": 2, "attn_layer_offset": 1}
    few = {"num_experts": 2, "num_experts_per_tok": 1, "vocab_size": 32, "use_mamba_kernels": False}
    torch.manual_seed(0)
    return JambaForCausalLM(JambaConfig(**size, **mixer, **few, pad_token_id=0))


def test_layers_that_no_gradient_reaches_are_found_and_left_out(jamba: Any) -> None:
    state = torch.random.get_rng_state()
    silent = silent_layers(jamba, lora())
    assert silent == ["model.layers.0.mamba.dt_proj"]
    assert torch.equal(state, torch.random.get_rng_state())
    assert describe(silent) == ", mamba.dt_proj left as they are as no gradient reaches them"
    assert silent_layers(jamba, lora(targets=["q_proj"])) == []


def test_naming_a_layer_that_no_gradient_reaches_is_refused(jamba: Any) -> None:
    with pytest.raises(ConfigError, match=r"no gradient reaches model\.layers\.0\.mamba\.dt_proj.*leave dt_proj out"):
        silent_layers(jamba, lora(targets=["q_proj", "dt_proj"]))


def test_full_fine_tuning_leaves_them_as_they_are(jamba: Any) -> None:
    whole = copy.deepcopy(jamba)
    assert silent_layers(whole, FullTraining()) == ["model.layers.0.mamba.dt_proj"]
    assert not whole.model.layers[0].mamba.dt_proj.weight.requires_grad
    assert whole.model.layers[0].mamba.in_proj.weight.requires_grad
