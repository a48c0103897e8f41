"""Packed attention on a real GPU: varlen alignment first, then the whole forward in bf16 against an fp32 truth."""

from __future__ import annotations

import pytest
import torch
from packed_models import gradients, random_pairs, separate_log_probs, tiny_model, with_lora

from dpo.engine.collate import layout
from dpo.engine.kernels import cuda
from dpo.engine.kernels.pairs import by_pair
from dpo.engine.packed_forward import install
from dpo.losses.completions import sums

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
DEVICE = torch.device("cuda", 0)


@pytest.mark.parametrize("kernel", ["varlen", "flex"])
@pytest.mark.parametrize("window", [None, 5], ids=["full", "sliding"])
def test_kernels_against_sdpa_in_fp32(kernel: str, window: int | None) -> None:
    packed = layout(random_pairs(6, longest=70)).to(DEVICE)
    total = packed.token_ids.shape[1]
    torch.manual_seed(0)
    shapes = ((1, 8, total, 64), (1, 2, total, 64), (1, 2, total, 64))
    exact = [torch.randn(shape, device=DEVICE, requires_grad=True) for shape in shapes]
    halves = [x.detach().bfloat16().requires_grad_() for x in exact]
    attend = cuda._varlen if kernel == "varlen" else cuda._flex
    truth = by_pair(*exact, packed, None, window, 0.0)
    got = attend(*halves, packed, None, window)
    torch.testing.assert_close(got.float(), truth, rtol=0.05, atol=0.05)
    weight = torch.randn_like(truth)
    expected = torch.autograd.grad((truth * weight).sum(), exact)
    found = torch.autograd.grad((got.float() * weight).sum(), halves)
    for a, b in zip(found, expected, strict=True):
        assert (a.float() - b).norm() < 0.02 * b.norm()


def test_this_device_has_a_fast_kernel() -> None:
    assert cuda.probe(0, torch.bfloat16, 64).name == "varlen"


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen3", "gemma3_text"])
def test_bf16_error_is_at_most_one_and_a_half_times_the_plain_one(family: str) -> None:
    pairs = random_pairs(6)
    for pair in pairs:
        assert max(pair.prompt_ids) < 97
    exact = with_lora(tiny_model(family, torch.float32)).to(DEVICE)
    truth = _scores(exact, pairs)
    half = with_lora(tiny_model(family, torch.float32)).to(DEVICE, torch.bfloat16)
    plain_error = (_scores(half, pairs) - truth).abs().mean()
    assert install(half) is None
    with torch.no_grad():
        packed = _packed(half, pairs)
    assert (packed - truth).abs().mean() <= 1.5 * plain_error + 1e-3


def test_fp32_gradients_on_the_device() -> None:
    pairs = random_pairs(4)
    policy = with_lora(tiny_model("gemma3_text", torch.float32)).to(DEVICE)
    torch.set_float32_matmul_precision("highest")
    expected_log_probs = separate_log_probs(with_lora(tiny_model("gemma3_text", torch.float32)), pairs)
    expected_log_probs.diff(dim=1).sum().backward()
    assert install(policy) is None
    got = _packed(policy, pairs)
    torch.testing.assert_close(got.cpu(), expected_log_probs, rtol=1e-4, atol=1e-3)
    got.diff(dim=1).sum().backward()
    assert len(gradients(policy)) == 42


def _packed(model: torch.nn.Module, pairs: list) -> torch.Tensor:
    packed = layout(pairs).to(DEVICE)
    lengths = torch.tensor([(chosen, rejected) for _, chosen, rejected in packed.lengths], device=DEVICE)
    return sums(model(input_ids=packed.token_ids, packed=packed).log_probs, lengths.view(-1))


def _scores(model: torch.nn.Module, pairs: list) -> torch.Tensor:
    rows = []
    with torch.no_grad():
        for pair in pairs:
            sums = []
            for completion in (pair.chosen_ids, pair.rejected_ids):
                ids = torch.tensor([pair.prompt_ids + completion], device=DEVICE)
                logits = model(input_ids=ids, use_cache=False).logits[0, len(pair.prompt_ids) - 1 : -1].float()
                picked = torch.log_softmax(logits, -1).gather(1, torch.tensor(completion, device=DEVICE).unsqueeze(1))
                sums.append(picked.sum())
            rows.append(torch.stack(sums))
    return torch.stack(rows)
