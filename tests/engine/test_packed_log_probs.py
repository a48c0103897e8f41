"""Scoring without gradients, what is refused, 4-bit layers, and the LM head's figures."""

from __future__ import annotations

import pytest
import torch
from packed_models import (
    SHAPE,
    VOCABULARY,
    gradients,
    packed_log_probs,
    plain_and_packed,
    random_pairs,
    separate_log_probs,
    tiny_model,
    with_lora,
)

from dpo.engine.collate import layout, pad, padded_index
from dpo.engine.head import token_statistics
from dpo.engine.lean import FEW_ROWS
from dpo.engine.lean_linear import DEQUANTIZED_SHARE, keep_dequantized
from dpo.engine.log_probs import sequence_log_probs
from dpo.engine.packed_forward import install
from dpo.modeling.modes import is_4bit, scoring_mode


@pytest.mark.parametrize("engine", ["packed", "plain"])
@pytest.mark.parametrize("budget", [1, 90, 10_000])
def test_scores_are_those_of_separate_sequences(engine: str, budget: int) -> None:
    policy, pairs = with_lora(tiny_model("gemma3_text")), random_pairs(7)
    expected = separate_log_probs(policy, pairs)
    if engine == "packed":
        assert install(policy) is None
    policy.train()
    done: list[int] = []
    scores = torch.tensor(sequence_log_probs(policy, pairs, budget, done.append), dtype=torch.float64)
    torch.testing.assert_close(scores, expected.detach(), rtol=1e-10, atol=1e-10)
    assert sum(done) == 7
    assert policy.training
    assert all(module.training for module in policy.modules())


def test_every_figure_of_trl_s_fused_head() -> None:
    """Same names and values as trl.trainer.utils.add_fused_lm_head, without its padding."""
    from trl.trainer.utils import add_fused_lm_head

    outputs = ("log_probs", "entropy", "mean_logits", "is_top1", "log_sum_sq_probs")
    for family in ("llama", "gemma3_text"):
        model, pairs = tiny_model(family, torch.float32), random_pairs(4)
        add_fused_lm_head(model, outputs=outputs)
        batch, packed = pad(pairs, 0), layout(pairs)
        labels = batch["input_ids"].masked_fill(batch.pop("completion_mask") == 0, -100)
        index = padded_index(pairs, labels.shape[1])
        with torch.no_grad():
            theirs = model(**batch, labels=labels, fused_lm_head=True)
            assert install(model) is None
            ours = model(input_ids=packed.token_ids, packed=packed, figures=outputs)
            unpacked = model(**batch, labels=labels, fused_lm_head=True)
        for name in outputs:
            expected = theirs[name].flatten()[index]
            torch.testing.assert_close(getattr(ours, name), expected, rtol=1e-4, atol=1e-4, msg=name)
            torch.testing.assert_close(unpacked[name], theirs[name], rtol=1e-4, atol=1e-4, msg=name)


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("with_bias", [False, True])
def test_head_in_tiles_against_log_softmax(
    monkeypatch: pytest.MonkeyPatch, softcap: float | None, with_bias: bool
) -> None:
    monkeypatch.setattr("dpo.engine.head.TILE_BYTES", 1)  # 512 columns a tile: several tiles
    torch.manual_seed(0)
    hidden = torch.randn(6, 10, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(1300, 10, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(1300, dtype=torch.float64, requires_grad=True) if with_bias else None
    rows, targets = torch.tensor([0, 0, 1, 2, 3, 5, 5]), torch.tensor([3, 1299, 512, 511, 7, 7, 1024])
    leaves = [x for x in (hidden, weight, bias) if x is not None]
    got = token_statistics(
        hidden,
        weight,
        bias,
        rows,
        targets,
        logit_scale=0.7,
        softcap=softcap,
        outputs=("log_probs", "entropy", "mean_logits", "is_top1"),
    )
    z = hidden @ weight.t() if bias is None else hidden @ weight.t() + bias
    z = z * 0.7
    z = z if softcap is None else softcap * torch.tanh(z / softcap)
    log_p = torch.log_softmax(z, -1)
    expected = log_p[rows, targets]
    torch.testing.assert_close(got.log_probs, expected)
    torch.testing.assert_close(got.entropy, -(log_p.exp() * log_p).sum(-1)[rows].detach())
    torch.testing.assert_close(got.mean_logits, z.mean(-1)[rows].detach())
    assert torch.equal(got.is_top1, z.argmax(-1)[rows] == targets)
    factors = torch.randn(7, dtype=torch.float64)
    mine = torch.autograd.grad((got.log_probs * factors).sum(), leaves)
    truth = torch.autograd.grad((expected * factors).sum(), leaves)
    for a, b in zip(mine, truth, strict=True):
        torch.testing.assert_close(a, b)


def test_refusals_name_the_reason_and_change_nothing() -> None:
    from peft import LoraConfig, PromptTuningConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM

    def refused(model: torch.nn.Module, words: str) -> None:
        before = model.forward
        reason = install(model)
        assert reason is not None
        assert words in reason
        assert model.forward == before

    small = {k: v for k, v in SHAPE.items() if k != "head_dim"}
    gpt2 = AutoConfig.for_model("gpt2", vocab_size=VOCABULARY, n_embd=32, n_layer=1, n_head=2)
    refused(AutoModelForCausalLM.from_config(gpt2), "'gpt2' is not verified")
    mixtral = AutoConfig.for_model("mixtral", **small, num_local_experts=2)
    refused(AutoModelForCausalLM.from_config(mixtral), "'mixtral' is not verified")
    gemma2 = AutoConfig.for_model("gemma2", **SHAPE)
    refused(AutoModelForCausalLM.from_config(gemma2), "'gemma2' is not verified")
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    refused(tiny_model("llama", rope_parameters=rope), "dynamic")
    refused(tiny_model("gemma3_text", use_bidirectional_attention=True), "not causal")
    prompt = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    refused(get_peft_model(tiny_model("llama", torch.float32), prompt), "PROMPT_TUNING")
    head = LoraConfig(r=2, target_modules=["q_proj", "lm_head"], task_type="CAUSAL_LM")
    refused(get_peft_model(tiny_model("llama"), head), "LM head")
    flex = tiny_model("llama")
    flex.config._attn_implementation_internal = "flex_attention"
    refused(flex, "flex_attention")


def test_unusual_lora_falls_back_to_peft_s_own_path() -> None:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=4, use_dora=True, target_modules="all-linear", task_type="CAUSAL_LM")
    policy = get_peft_model(tiny_model("llama", torch.float32), config)
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, 0.0, 0.1)
    (expected, expected_gradients), (got, got_gradients) = plain_and_packed(policy, random_pairs(3))
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-4)
    assert sorted(got_gradients) == sorted(expected_gradients)
    for name, gradient in got_gradients.items():
        bound = 1e-4 * expected_gradients[name].abs().max().item()
        torch.testing.assert_close(gradient, expected_gradients[name], rtol=0, atol=bound, msg=name)


def quantized(double: bool) -> torch.nn.Module:
    import bitsandbytes as bnb

    model = tiny_model("llama", torch.float32, hidden_size=64, intermediate_size=128, head_dim=16)
    for layer in model.model.layers:
        for owner in (layer.self_attn, layer.mlp):
            for name, linear in list(owner.named_children()):
                if isinstance(linear, torch.nn.Linear):
                    new = bnb.nn.Linear4bit(
                        linear.in_features,
                        linear.out_features,
                        bias=False,
                        compute_dtype=torch.float32,
                        quant_type="nf4",
                        compress_statistics=double,
                    )
                    new.weight = bnb.nn.Params4bit(
                        linear.weight.data, requires_grad=False, quant_type="nf4", compress_statistics=double
                    )
                    setattr(owner, name, new.to("cpu"))
    model.is_loaded_in_4bit = True
    return model


@pytest.mark.parametrize("double", [False, True])
def test_nf4_gradients_arrive_and_survive_scoring(double: bool) -> None:
    policy, pairs = with_lora(quantized(double)), random_pairs(4)
    for parameter in policy.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    policy.train()
    expected = separate_log_probs(policy, pairs)
    expected.diff(dim=1).sum().backward()
    expected_gradients = gradients(policy)
    assert len(expected_gradients) == 42
    assert install(policy) is None
    sequence_log_probs(policy, pairs, 100)  # a pass without gradients in between must not spoil the layers
    got = packed_log_probs(policy, pairs)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-4)
    got.diff(dim=1).sum().backward()
    got_gradients = gradients(policy)
    assert sorted(got_gradients) == sorted(expected_gradients)
    for name, gradient in expected_gradients.items():
        bound = 1e-4 * gradient.abs().max().item()
        torch.testing.assert_close(got_gradients[name], gradient, rtol=0, atol=bound, msg=name)


def test_scoring_keeps_4bit_layers_in_train_mode_and_restores_flags() -> None:
    import bitsandbytes as bnb

    model = quantized(False)
    model.eval()
    model.model.norm.train()
    with scoring_mode(model):
        assert not torch.is_grad_enabled()
        for module in model.modules():
            assert module.training == isinstance(module, bnb.nn.Linear4bit)
    assert [m for m in model.modules() if m.training] == [model.model.norm]


def test_unpacked_weights_are_kept_once_and_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    policy, pairs = with_lora(quantized(True)), random_pairs(4)
    assert install(policy) is None
    unpack, unpacked = torch.ops.bitsandbytes.dequantize_4bit.default, []

    def counted(*args: object) -> torch.Tensor:
        unpacked.append(args)
        return unpack(*args)

    def step() -> tuple[int, torch.Tensor, dict[str, torch.Tensor]]:
        unpacked.clear()
        policy.zero_grad()
        log_probs = packed_log_probs(policy, pairs)
        log_probs.diff(dim=1).sum().backward()
        return len(unpacked), log_probs.detach(), gradients(policy)

    monkeypatch.setattr(torch.ops.bitsandbytes.dequantize_4bit, "default", counted)
    layers = sum(is_4bit(module) for module in policy.modules())
    often, log_probs, grads = step()
    assert often > layers
    bytes_dequantized = 2 * sum(m.in_features * m.out_features for m in policy.modules() if is_4bit(m))
    enough = int(bytes_dequantized / DEQUANTIZED_SHARE)
    assert keep_dequantized(policy, torch.bfloat16, enough - 1) == 0
    assert step()[0] == often
    assert keep_dequantized(policy, torch.bfloat16, enough) == bytes_dequantized
    names = set(policy.state_dict())
    for expected in (layers, 0):
        count, same, same_grads = step()
        assert count == expected
        assert torch.equal(same, log_probs)
        assert all(torch.equal(same_grads[name], grad) for name, grad in grads.items())
    assert set(policy.state_dict()) == names


def test_few_rows_read_the_kept_weight_and_unpack_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    import bitsandbytes as bnb

    policy = with_lora(quantized(True))
    assert install(policy) is None
    assert keep_dequantized(policy, torch.float32, 10**9) > 0
    ids = torch.arange(5, 5 + FEW_ROWS).unsqueeze(0)
    with torch.no_grad():
        policy(input_ids=ids)  # unpacks every weight

        def refused(*args: object, **kwargs: object) -> torch.Tensor:
            raise AssertionError("a weight that is kept was unpacked again")

        monkeypatch.setattr(torch.ops.bitsandbytes.dequantize_4bit, "default", refused)
        monkeypatch.setattr(bnb, "matmul_4bit", refused)
        policy(input_ids=ids[:, :3])


@pytest.mark.parametrize("change", ["merge", "load"])
def test_unpacked_weights_follow_the_packed_ones(change: str) -> None:
    results = []
    for keeps in (False, True):
        policy, pairs = with_lora(quantized(True)), random_pairs(4)
        assert install(policy) is None
        if keeps:
            assert keep_dequantized(policy, torch.float32, 10**9) > 0
        with torch.no_grad(), policy.disable_adapter():
            before = packed_log_probs(policy, pairs)
        if change == "merge":
            policy.merge_adapter()
        else:
            state = policy.state_dict()
            packed = {name: value for name, value in state.items() if value.dtype == torch.uint8}
            policy.load_state_dict({name: value.flip(0) for name, value in packed.items()}, strict=False)
        with torch.no_grad():
            results.append(packed_log_probs(policy, pairs))
        assert (results[-1] - before).abs().max() > 1e-2
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=0)
