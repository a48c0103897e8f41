"""Which kernel computes attention is tried once, told, and part of what a reference log-prob depends on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from packed_models import tiny_model

from dpo.engine import attention
from dpo.engine.kernels import cuda


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    cuda.probe.cache_clear()
    yield
    cuda.probe.cache_clear()


def on_cuda(model: torch.nn.Module, monkeypatch: pytest.MonkeyPatch) -> torch.nn.Module:
    """`model` as one whose weights lie on a GPU, as far as choosing a kernel looks."""

    class There:
        device = torch.device("cuda", 0)

    monkeypatch.setattr(model.get_input_embeddings(), "parameters", lambda: iter([There()]))
    return model


def test_out_of_memory_while_trying_kernels_is_raised_and_not_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    answers: list[Any] = [torch.OutOfMemoryError("no room"), True]

    def agrees(*_: Any) -> bool:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return bool(answer)

    monkeypatch.setattr(cuda, "_agrees", agrees)
    with pytest.raises(torch.OutOfMemoryError):
        cuda.probe(0, torch.bfloat16, 64)
    assert cuda.probe(0, torch.bfloat16, 64).name == "varlen"


def test_a_slower_kernel_says_why_and_has_references_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    model = on_cuda(tiny_model("llama", torch.bfloat16), monkeypatch)
    found: dict[str, tuple[str, str]] = {}

    def agrees(attend: Any, *_: Any) -> bool:
        if attend is cuda._varlen:
            raise RuntimeError("no kernel image\nfor this device")
        return flex

    for flex in (True, False):
        cuda.probe.cache_clear()
        monkeypatch.setattr(cuda, "_agrees", agrees)
        found[str(flex)] = (
            attention.describe_kernel(model, torch.bfloat16),
            attention.path(model, torch.bfloat16),
        )
    assert found["True"][0] == "flex because varlen: RuntimeError (no kernel image)"
    assert found["False"][0] == (
        "pair by pair because varlen: RuntimeError (no kernel image); flex does not agree with a plain softmax"
    )
    monkeypatch.setattr(cuda, "_agrees", lambda *_: True)
    cuda.probe.cache_clear()
    assert attention.describe_kernel(model, torch.bfloat16) == "varlen"
    cpu = attention.path(tiny_model("llama", torch.bfloat16), torch.bfloat16)
    assert len({found["True"][1], found["False"][1], attention.path(model, torch.bfloat16), cpu}) == 4


def test_the_cpu_line_names_its_kernel() -> None:
    assert attention.describe_kernel(tiny_model("llama"), torch.float32) == "tiles"
