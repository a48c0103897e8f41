"""What a step is said to take on tensors without contents, against what torch's CPU allocator gave the real one."""

from __future__ import annotations

import contextlib
import gc
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch

from dpo.config.schema import Config
from dpo.data.pair import TokenPair
from dpo.modeling.device import choose_compute
from dpo.modeling.policy import load_base, model_config
from dpo.modeling.weights import Weights, resolve
from dpo.planning import rehearsal
from dpo.planning.allocator import Host
from dpo.planning.card import fake_host
from dpo.planning.trace import Trace
from dpo.training import build

TINY = [
    "lora=qlora",
    "lora=qlora lora.dropout=0.05 hardware.activation_checkpointing=on",
    "lora=full",
]
"""In fp32: oneDNN's products in bf16 take room of their own, by processor, which shows in a step of few megabytes."""
STORAGES = (
    "lora=qlora",
    "lora=qlora hardware.memory_gb=0.5",
    "lora=lora hardware.precision=bf16",
    "lora=int8",
    "lora=full",
    "lora=qlora lora.dropout=0.05",
)
LARGE = [
    *(f"{storage} hardware.activation_checkpointing={asked}" for storage in STORAGES for asked in ("on", "off")),
    "lora=qlora hardware.token_budget=256",
    "lora=qlora hardware.token_budget=512",
    "lora=full hardware.token_budget=512",
]


class Profiled:
    """In the place of a trace: torch's profiler, which is told of every block its CPU allocator gives."""

    def __init__(self) -> None:
        self.allocator = SimpleNamespace(allocated=0)
        self.purpose, self.counting, self.flops = "", True, 0
        self.peak, self.parts = 0, Counter[str]()

    def see(self, tensor: torch.Tensor) -> None:
        pass

    @contextlib.contextmanager
    def made_for(self, purpose: str) -> Iterator[None]:
        yield

    @contextlib.contextmanager
    def stage(self, purpose: str) -> Iterator[None]:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as prof:
            yield
        events = prof.profiler.kineto_results.events()
        found = [(event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]"]
        now = self.peak = 0
        for _, size in sorted(found, key=lambda each: each[0]):
            now += size
            self.peak = max(self.peak, now)


def steps(pairs: list[TokenPair]) -> list[list[TokenPair]]:
    """One that makes the optimizer's state, then the one to look at."""
    return [pairs[:1], pairs]


def real(config: Config, weights: Weights, pairs: list[TokenPair], monkeypatch: pytest.MonkeyPatch) -> int:
    """Bytes that the second step took beyond what lay there."""

    def load(shape: Any, *args: Any) -> Any:
        return load_base(weights, *args)

    compute = choose_compute(config.hardware.device, config.hardware.precision)
    trace: Any = Profiled()
    with monkeypatch.context() as patched:
        patched.setattr(rehearsal, "fake_base", load)
        patched.setattr(rehearsal, "held", lambda model: [])
        patched.setattr(torch, "get_num_threads", lambda: 1)
        # Random words in 8 bits move logits further than it allows.
        patched.setattr(build, "check_scores", lambda *_: None)
        run = rehearsal.Rehearsal(config, None, compute, pairs, trace)
        found = run.train(steps(pairs), gradients=True)[-1].peak
    del run
    gc.collect()
    return found


def fake(config: Config, weights: Weights, pairs: list[TokenPair]) -> int:
    """The same without contents."""
    compute = choose_compute(config.hardware.device, config.hardware.precision)
    trace = Trace(Host(), "cpu")
    with fake_host(), trace:
        run = rehearsal.Rehearsal(config, model_config(weights), compute, pairs, trace)
        stage = run.train(steps(pairs), gradients=True)[-1]
    return stage.peak - stage.held


def text_pairs(weights: Weights, count: int, words: tuple[int, int, int]) -> list[TokenPair]:
    """Of words that follow each other in no order."""
    import random

    from transformers import AutoTokenizer

    tokenizer, draw = AutoTokenizer.from_pretrained(weights.folder), random.Random(0)

    def ids(size: int) -> list[int]:
        text = " ".join(draw.choices(tiny.WORDS, k=size))
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    return [TokenPair(f"t:train:{i}", ids(words[0]), ids(words[1]), ids(words[2])) for i in range(count)]


def compare(words: str, weights: Weights, pairs: list[TokenPair], compose: Any, monkeypatch: Any) -> float:
    config = compose("hardware=cpu", "tracking=none", *words.split())
    return fake(config, weights, pairs) / real(config, weights, pairs, monkeypatch)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Weights:
    return resolve(str(tiny.make_model(tmp_path_factory.mktemp("small"))), "main")


@pytest.mark.parametrize("words", TINY)
def test_a_tiny_step_takes_what_was_said(
    words: str, small: Weights, compose: Callable[..., Config], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pairs = text_pairs(small, 4, (60, 70, 40))
    words += " hardware.precision=fp32"
    assert compare(words, small, pairs, compose, monkeypatch) == pytest.approx(1, abs=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("words", LARGE)
def test_a_step_takes_what_was_said(
    words: str, compose: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = resolve("embedded:smollm2-135m-instruct", "main")
    pairs = text_pairs(weights, 4, (80, 90, 60))
    assert compare(words, weights, pairs, compose, monkeypatch) == pytest.approx(1, abs=0.01)
