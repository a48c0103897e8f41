"""The packed forward against separate plain sequences, for every family it claims to support."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from packed_models import (
    EXTRA,
    gradients,
    packed_log_probs,
    padded_log_probs,
    plain_and_packed,
    random_pairs,
    separate_log_probs,
    tiny_model,
    with_lora,
)
from peft import LoraConfig, get_peft_model
from trl.trainer.utils import add_fused_lm_head

from dpo.engine.kernels import cpu
from dpo.engine.packed_forward import install, installed
from dpo.engine.support import VERIFIED

FAMILIES = sorted(EXTRA)


def test_every_supported_family_is_tested() -> None:
    assert sorted(VERIFIED) == FAMILIES


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["fp64", "fp32"])
def test_log_probs_and_lora_gradients(family: str, dtype: torch.dtype) -> None:
    policy = with_lora(tiny_model(family, dtype))
    pairs = random_pairs(5)
    weights = torch.linspace(-1.0, 1.5, 10, dtype=dtype).view(5, 2)

    expected = separate_log_probs(policy, pairs)
    (expected * weights).sum().backward()
    expected_gradients = gradients(policy)

    assert install(policy) is None
    assert installed(policy)
    got = packed_log_probs(policy, pairs)
    (got * weights).sum().backward()
    got_gradients = gradients(policy)

    # The families' norms compute in fp32 whatever the dtype, so fp64 gradients agree to fp32 rounding only.
    bound, gradient_bound = (1e-12, 1e-6) if dtype == torch.float64 else (1e-6, 2e-5)
    torch.testing.assert_close(got, expected.to(got.dtype), rtol=bound, atol=bound)
    assert sorted(got_gradients) == sorted(expected_gradients)
    assert len(got_gradients) == 3 * 7 * 2
    for name, gradient in expected_gradients.items():
        scale = gradient.abs().max().item()
        assert scale > 0, name
        torch.testing.assert_close(got_gradients[name], gradient, rtol=0, atol=gradient_bound * scale, msg=name)


@pytest.mark.parametrize("family", ["mistral", "qwen2", "gemma3_text"])
def test_the_sliding_window_matters_here(family: str) -> None:
    pairs = random_pairs(3)
    narrow = separate_log_probs(tiny_model(family), pairs)
    wide = separate_log_probs(tiny_model(family, sliding_window=100), pairs)
    assert (narrow - wide).abs().max() > 1e-2


def test_a_window_in_a_llama_config_means_nothing() -> None:
    policy, pairs = tiny_model("llama", sliding_window=7), random_pairs(3)
    expected = separate_log_probs(policy, pairs)
    assert install(policy) is None
    torch.testing.assert_close(packed_log_probs(policy, pairs), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_full_fine_tuning_gradients_reach_embeddings_and_head(family: str) -> None:
    model = tiny_model(family).requires_grad_(True)
    pairs = random_pairs(4)
    separate_log_probs(model, pairs).diff(dim=1).sum().backward()
    expected = gradients(model)
    assert install(model) is None
    packed_log_probs(model, pairs).diff(dim=1).sum().backward()
    got = gradients(model)
    assert sorted(got) == sorted(expected)
    for name, gradient in expected.items():
        torch.testing.assert_close(got[name], gradient, rtol=0, atol=1e-6 * gradient.abs().max().item(), msg=name)


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing_gives_the_same_gradients(reentrant: bool) -> None:
    policy = with_lora(tiny_model("gemma3_text"))
    assert install(policy) is None
    pairs = random_pairs(4)
    policy.train()
    packed_log_probs(policy, pairs).diff(dim=1).sum().backward()
    expected = gradients(policy)
    policy.enable_input_require_grads()
    policy.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    packed_log_probs(policy, pairs).diff(dim=1).sum().backward()
    got = gradients(policy)
    assert sorted(got) == sorted(expected)
    for name, gradient in expected.items():
        torch.testing.assert_close(got[name], gradient, rtol=1e-12, atol=1e-12, msg=name)


def test_adapters_off_is_the_base_model() -> None:
    base = tiny_model("qwen3")
    pairs = random_pairs(3)
    expected = separate_log_probs(base, pairs)
    policy = with_lora(base)
    assert install(policy) is None
    with torch.no_grad(), policy.disable_adapter():
        torch.testing.assert_close(packed_log_probs(policy, pairs), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_other_calls_are_unchanged(attention: str) -> None:
    model = tiny_model("gemma3_text", torch.float32)
    model.set_attn_implementation(attention)
    ids = torch.tensor([[5, 6, 7, 8, 9, 10, 11, 12, 13, 14], [0, 0, 0, 0, 5, 6, 7, 8, 9, 10]])
    mask = (ids != 0).long()
    before = model(input_ids=ids, attention_mask=mask).logits
    text_before = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=6, do_sample=False)
    assert install(model) is None
    assert torch.equal(model(input_ids=ids, attention_mask=mask).logits, before)
    assert torch.equal(
        model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=6, do_sample=False), text_before
    )


def test_install_twice_changes_nothing() -> None:
    model = tiny_model("llama")
    assert install(model) is None
    forward = model.forward
    assert install(model) is None
    assert model.forward == forward


@pytest.mark.parametrize("family", FAMILIES)
def test_bf16_error_is_at_most_one_and_a_half_times_the_plain_one(family: str) -> None:
    pairs = random_pairs(16, seed=3)
    weights = torch.linspace(-1.0, 1.5, 32).view(16, 2)

    def measure(policy: torch.nn.Module, scores: Callable[..., torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        log_probs = scores(policy, pairs)
        (log_probs.float() * weights).sum().backward()
        found = gradients(policy)
        return log_probs.detach().float(), torch.cat([found[name].float().flatten() for name in sorted(found)])

    truth = measure(with_lora(tiny_model(family, torch.float32)), separate_log_probs)
    half = with_lora(tiny_model(family, torch.float32)).to(torch.bfloat16)
    add_fused_lm_head(half.get_base_model(), outputs=("log_probs",))
    plain = measure(half, padded_log_probs)
    assert install(half) is None
    packed = measure(half, packed_log_probs)
    for mine, theirs, exact in zip(packed, plain, truth, strict=True):
        assert (mine - exact).norm() <= 1.5 * (theirs - exact).norm()


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_autocast_in_bf16(family: str) -> None:
    policy, pairs = with_lora(tiny_model(family, torch.float32)), random_pairs(4)
    with torch.no_grad():
        exact = separate_log_probs(policy, pairs)
    assert install(policy) is None
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = packed_log_probs(policy, pairs)
    assert (got - exact).abs().max() < 0.05 * exact.abs().max()
    got.diff(dim=1).sum().backward()
    found = gradients(policy)
    assert len(found) == 42
    assert all(gradient.dtype == torch.float32 for gradient in found.values())


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_probabilities_made_again_are_those_kept(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Tiles of a few rows, as long sequences have them.
    monkeypatch.setattr(cpu, "TILE", 1)
    monkeypatch.setattr(cpu, "FEWEST_ROWS", 5)
    policy = with_lora(tiny_model(family, torch.float32))
    assert install(policy) is None
    results = []
    made = []
    original = cpu._probabilities
    monkeypatch.setattr(cpu, "_probabilities", lambda *args: made.append(1) or original(*args))
    for kept in (512, 0):
        monkeypatch.setattr(cpu, "KEPT_KEYS", kept)
        made.clear()
        policy.zero_grad()
        packed_log_probs(policy, random_pairs(5)).diff(dim=1).sum().backward()
        results.append((len(made), gradients(policy)))
    assert results[1][0] == 2 * results[0][0]
    assert all(torch.equal(results[1][1][name], gradient) for name, gradient in results[0][1].items())


@pytest.mark.parametrize("family", ["llama", "qwen2"])
@pytest.mark.parametrize(
    "changes",
    [
        {"target_modules": ["q_proj", "v_proj"]},
        {"target_modules": ["k_proj", "up_proj"]},
        {"rank_pattern": {"k_proj": 2, "gate_proj": 7}, "alpha_pattern": {"v_proj": 3, "up_proj": 5}},
        {"use_rslora": True},
        {"use_dora": True},
    ],
    ids=["q-v", "k-up", "ranks", "rslora", "dora"],
)
def test_adapters_that_differ_among_layers_of_one_input(family: str, changes: dict[str, object]) -> None:
    options = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **changes}
    torch.manual_seed(3)
    policy = get_peft_model(tiny_model(family), LoraConfig(**options))  # type: ignore[arg-type]
    for name, parameter in policy.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn_like(parameter.data, dtype=torch.float64) * 0.1
    pairs = random_pairs(5)
    (expected, expected_gradients), (got, got_gradients) = plain_and_packed(policy, pairs)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    assert sorted(got_gradients) == sorted(expected_gradients) != []
    for name, gradient in expected_gradients.items():
        scale = gradient.abs().max().item()
        torch.testing.assert_close(got_gradients[name], gradient, rtol=0, atol=1e-6 * scale, msg=name)
