"""Merging against the equation, in every type it may be done in, and where it must not be done."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from dpo.errors import ConfigError, Diverged
from dpo.release.merge import cast, merge, prepare_settings
from dpo.release.rounding import StochasticRounding


def adapted(dora: bool = False, rslora: bool = False) -> Any:
    """A two-layer Llama with a LoRA adapter of random weights on every linear layer."""
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    base = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=1, tie_word_embeddings=True,
        )
    )  # fmt: skip
    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", use_dora=dora, use_rslora=rslora)
    model = get_peft_model(base, config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.1)
    return model


IDS = torch.tensor([[1, 5, 9, 30, 2]])
BF16, FP16, FP32 = (StochasticRounding(kind, 0) for kind in (torch.bfloat16, torch.float16, torch.float32))


def test_each_weight_is_base_plus_scaled_product_rounded_once() -> None:
    model = adapted()
    layer = model.base_model.model.model.layers[1].mlp.down_proj
    a, b = layer.lora_A["default"].weight.data, layer.lora_B["default"].weight.data
    exact = layer.base_layer.weight.data.double() + 8 / 4 * b.double() @ a.double()
    found = merge(model, BF16).model.layers[1].mlp.down_proj.weight
    assert found.dtype == torch.bfloat16
    # One of the two bf16 numbers around it, usually the nearer one.
    assert torch.allclose(found.double(), exact, rtol=2**-7)
    assert 0.6 < (found == exact.to(torch.bfloat16)).float().mean() < 0.95


@pytest.mark.parametrize("options", [{}, {"dora": True}, {"rslora": True}])
def test_the_merged_model_is_plain_and_says_the_same(options: dict[str, bool]) -> None:
    model = adapted(**options)
    with torch.no_grad():
        before = model(IDS).logits
        with model.disable_adapter():
            assert not torch.allclose(model(IDS).logits, before, atol=1e-2)
        merged = merge(model, FP32)
        assert torch.allclose(merged(IDS).logits, before, atol=1e-5)
    assert not any("lora" in name for name, _ in merged.named_parameters())
    assert merged.lm_head.weight is merged.model.embed_tokens.weight, "still tied"


def test_a_number_that_is_not_finite_stops_the_merge() -> None:
    model = adapted()
    model.base_model.model.model.layers[0].self_attn.q_proj.lora_B["default"].weight.data[0, 0] = float("nan")
    with pytest.raises(Diverged, match=r"q_proj: the adapter cannot be merged"):
        merge(model, FP32)


def test_quantized_weights_are_never_merged_into(tmp_path: Path) -> None:
    import tiny
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    base = AutoModelForCausalLM.from_pretrained(
        tiny.make_model(tmp_path / "model"),
        quantization_config=BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4"),
        device_map={"": "cpu"},
    )
    with pytest.raises(ValueError, match="not merged into quantized weights"):
        merge(get_peft_model(base, LoraConfig(target_modules="all-linear")), FP32)


def test_a_weight_too_large_for_fp16_is_named() -> None:
    model = merge(adapted(), FP32)
    model.model.layers[0].mlp.up_proj.weight.data[0, 0] = 1e5
    with pytest.raises(ConfigError, match=r"layers\.0\.mlp\.up_proj\.weight .* float16"):
        cast(model, FP16)


def test_settings_of_a_strange_base_are_made_right() -> None:
    class Tokenizer:
        pad_token_id = 7

    model = merge(adapted(), FP32)
    model.generation_config.temperature, model.generation_config.do_sample = 0.6, False
    prepare_settings(model, Tokenizer(), {2, 9}, "org/base")
    model.generation_config.validate(strict=True)
    assert model.generation_config.eos_token_id == [2, 9]
    assert (model.generation_config.pad_token_id, model.config.pad_token_id) == (7, 7)
    assert model.config.use_cache is True
    # Tied in its config and in its weights; then a head of its own, as some folders have that say they are tied.
    assert model.config.tie_word_embeddings is True
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight + 1)
    prepare_settings(model, Tokenizer(), {2, 9}, "org/base")
    assert model.config.tie_word_embeddings is False


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_a_change_far_below_a_step_survives_on_average(kind: Any) -> None:
    """Of many equal weights moved by a hundredth of a step, one in a hundred moves by a whole step."""
    start = torch.tensor([1.0, -0.37, 3e-3, -200.0]).to(kind).float().repeat(100_000, 1)
    step = start.abs() * torch.finfo(kind).eps / 2
    moved = start + 0.01 * step
    rounded = StochasticRounding(kind, 1)(moved)
    assert rounded.dtype == kind
    assert torch.equal(moved.to(kind).float(), start), "rounded to nearest, nothing would be left of it"
    kept = (rounded.double() - start).mean(0) / (moved.double() - start).mean(0)
    assert torch.allclose(kept, torch.ones(4, dtype=torch.double), atol=0.15)
    assert ((rounded.double() - moved).abs() <= 2 * step).all(), "never further than a neighbour"


def test_what_a_type_holds_stays_and_a_seed_repeats() -> None:
    edges = torch.tensor([0.0, -0.0, 1.0, -2.5, 65504.0, 2.0**-24, 1e-10, -1e-10, 1e6, float("inf"), float("nan")])
    half = StochasticRounding(torch.float16, 0)(edges)
    assert half[:6].tolist() == edges[:6].tolist()
    assert half[6:8].abs().max() <= 2.0**-24, "below the smallest number there are only that one and zero"
    assert half[8:10].tolist() == [float("inf")] * 2
    assert half[10].isnan()
    values = torch.randn(1000)
    assert torch.equal(StochasticRounding(torch.bfloat16, 3)(values), StochasticRounding(torch.bfloat16, 3)(values))
    assert not torch.equal(StochasticRounding(torch.bfloat16, 3)(values), StochasticRounding(torch.bfloat16, 4)(values))
    assert torch.equal(FP32(values), values)
    exact = values.to(torch.bfloat16)
    assert torch.equal(StochasticRounding(torch.bfloat16, 0)(exact.float()), exact)


def test_what_a_base_forces_on_answers_is_left_out(capsys: Any) -> None:
    class Tokenizer:
        pad_token_id = 7

    model = merge(adapted(), FP32)
    model.generation_config.suppress_tokens, model.generation_config.min_new_tokens = [2], 50
    model.generation_config.max_new_tokens, model.generation_config.no_repeat_ngram_size = 3, 2
    prepare_settings(model, Tokenizer(), {2}, "org/base")
    assert model.generation_config.suppress_tokens is None
    assert model.generation_config.min_new_tokens is None
    assert model.generation_config.max_new_tokens is None
    assert model.generation_config.no_repeat_ngram_size is None
    assert "the base's suppress_tokens left out" in capsys.readouterr().out
