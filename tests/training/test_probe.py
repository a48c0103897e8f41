"""What is trained is the model's own log-prob, and nothing reads what follows: found with a few tokens beforehand."""

from __future__ import annotations

import pytest
import torch
from packed_models import random_pairs, tiny_model

from dpo.engine.log_probs import sequence_log_probs
from dpo.errors import ConfigError
from dpo.training.checks.probe import check_scores

PAIR = random_pairs(3)[2]


def made(kind: str, **more: object):
    from transformers import AutoConfig, AutoModelForCausalLM
    from trl.trainer.utils import add_fused_lm_head

    torch.manual_seed(0)
    shape = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    shape |= {"num_attention_heads": 4, "pad_token_id": 0, "initializer_range": 0.3}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**shape, **more}))
    add_fused_lm_head(model)
    return model.float()


def test_a_family_that_reads_what_follows_is_refused():
    with pytest.raises(ConfigError, match=r"model\.path=x: bert reads the tokens that follow"):
        check_scores(made("bert"), PAIR, torch.float32, "x")


@pytest.mark.parametrize("kind", ["bert", "bert-generation", "roc_bert"])
def test_an_encoder_is_refused_though_sixteen_bits_would_round_what_it_reads(kind):
    with pytest.raises(ConfigError, match=rf"{kind} reads the tokens that follow"):
        check_scores(made(kind, initializer_range=0.02), PAIR, torch.bfloat16, "x")


@pytest.mark.parametrize("kind", ["granite", "cohere", "gemma2"])
def test_families_that_scale_their_logits_are_scored_as_themselves(kind):
    more = {"granite": {"logits_scaling": 4.0}, "cohere": {"logit_scale": 0.25}, "gemma2": {"head_dim": 8}}[kind]
    model = made(kind, num_key_value_heads=2, **more)
    check_scores(model, PAIR, torch.float32, "x")
    ids = torch.tensor([PAIR.prompt_ids + PAIR.chosen_ids])
    with torch.no_grad():
        rows = model(input_ids=ids).logits[0, len(PAIR.prompt_ids) - 1 : -1].log_softmax(-1)
    own = float(rows.gather(1, torch.tensor(PAIR.chosen_ids).unsqueeze(1)).sum())
    assert sequence_log_probs(model, [PAIR], 4096)[0][0] == pytest.approx(own, rel=1e-4)


def test_a_scale_the_trainer_does_not_know_is_refused():
    model = made("recurrent_gemma", num_key_value_heads=1, head_dim=8, lru_width=32, logits_soft_cap=0.5)
    with pytest.raises(ConfigError, match="in a way that the trainer does not know"):
        check_scores(model, PAIR, torch.float32, "x")


def test_a_forward_that_fails_is_one_line():
    model = tiny_model("llama", torch.float32)
    model.model.layers[0].mlp = torch.nn.Linear(3, 3)
    with pytest.raises(ConfigError, match="its forward pass fails") as caught:
        check_scores(model, PAIR, torch.float32, "x")
    assert len(str(caught.value).splitlines()) == 1
