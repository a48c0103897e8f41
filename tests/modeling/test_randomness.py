"""A base draws nothing at random while it trains, however its family asks for that; DoRA begins as the identity."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from packed_models import random_pairs, tiny_model
from peft import LoraConfig, get_peft_model

from dpo.engine.log_probs import sequence_log_probs
from dpo.engine.packed_forward import install
from dpo.modeling.magnitudes import set_magnitudes
from dpo.modeling.randomness import draws_at_random, turn_off_randomness

SHAPE = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
RANDOM: dict[str, dict[str, Any]] = {
    "llama": {"attention_dropout": 0.5, "intermediate_size": 48},
    "opt": {"dropout": 0.5, "attention_dropout": 0.5, "ffn_dim": 48, "word_embed_proj_dim": 32},
    "gpt2": {"attn_pdrop": 0.5, "resid_pdrop": 0.5},
    "biogpt": {"hidden_dropout_prob": 0.5, "layerdrop": 0.5, "intermediate_size": 48},
    "mixtral": {"router_jitter_noise": 0.5, "num_local_experts": 4, "intermediate_size": 48, "num_key_value_heads": 1},
}


@pytest.mark.parametrize("kind", RANDOM)
def test_two_forwards_in_training_are_one(kind: str) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SHAPE, **RANDOM[kind])).train()
    ids = torch.arange(20).view(2, 10)
    with torch.no_grad():
        assert not torch.equal(model(input_ids=ids).logits, model(input_ids=ids).logits)
        assert turn_off_randomness(model)
        assert torch.equal(model(input_ids=ids).logits, model(input_ids=ids).logits)
        assert torch.equal(model(input_ids=ids).logits, model.eval()(input_ids=ids).logits)
    assert not draws_at_random(model)
    assert turn_off_randomness(model) == []


def test_a_fresh_dora_in_16_bits_changes_nothing() -> None:
    settings = LoraConfig(r=4, target_modules="all-linear", use_dora=True, task_type="CAUSAL_LM")
    model = get_peft_model(tiny_model("llama", torch.bfloat16), settings, autocast_adapter_dtype=False)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    set_magnitudes(model)
    assert install(model) is None
    pairs = random_pairs(4)
    with model.disable_adapter():
        off = sequence_log_probs(model, pairs, 4096)
    assert sequence_log_probs(model, pairs, 4096) == off
