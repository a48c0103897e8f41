"""Which kernel computes attention is tried once, told, and part of what a reference log-prob depends on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from packed_models import tiny_model

from dpo.engine import attention
from dpo.engine.kernels import cpu, cuda


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
    here = attention.path(tiny_model("llama", torch.bfloat16), torch.bfloat16)
    assert len({found["True"][1], found["False"][1], attention.path(model, torch.bfloat16), here}) == 4


def of_sequences(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layout: Any, scaling: Any, window: Any
) -> torch.Tensor:
    """What a GPU's kernel is asked for, by plain products: the last queries of each sequence look at its keys."""
    rows, query_ends, key_ends, most, _ = cuda._sequences(layout, query.device)
    counts, lengths = query_ends.diff().tolist(), key_ends.diff().tolist()
    assert min(counts) > 0
    assert most == max(counts)
    key, value = (part[0].index_select(1, rows).repeat_interleave(2, 0) for part in (key, value))
    found = []
    for queries, keys, values in zip(
        query[0].split(counts, 1), key.split(lengths, 1), value.split(lengths, 1), strict=True
    ):
        seen = torch.ones(queries.shape[1], keys.shape[1]).tril(keys.shape[1] - queries.shape[1])
        if window is not None:
            seen = seen.triu(keys.shape[1] - queries.shape[1] - window + 1)
        scores = (queries @ keys.transpose(1, 2) * queries.shape[-1] ** -0.5).masked_fill(seen == 0, -torch.inf)
        found.append(scores.softmax(-1) @ values)
    return torch.cat(found, 1).transpose(0, 1).unsqueeze(0)


@pytest.mark.parametrize(
    "attend", [of_sequences, lambda *given: cpu.TiledPairs.apply(*given)], ids=["what a GPU computes", "CPU"]
)
def test_sequences_of_pairs_and_of_single_answers_are_those_of_the_definition(attend: Any) -> None:
    assert cuda._agrees(attend, torch.device("cpu"), torch.float32, 16)


def test_the_cpu_line_names_its_kernel() -> None:
    assert attention.describe_kernel(tiny_model("llama"), torch.float32) == "tiles"
