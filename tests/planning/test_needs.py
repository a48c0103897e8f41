"""What a step is measured to need, where an engine asks before it settles a budget."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import tiny
import torch

from dpo.config.schema import Config
from dpo.data.pair import TokenPair
from dpo.engine.memory import SPACE, Need, plan
from dpo.modeling.device import choose_compute
from dpo.modeling.policy import model_config
from dpo.modeling.weights import Weights, resolve
from dpo.planning import needs
from dpo.planning.allocator import Host
from dpo.planning.card import fake_host
from dpo.planning.rehearsal import Rehearsal
from dpo.planning.trace import Trace


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Weights:
    return resolve(str(tiny.make_model(tmp_path_factory.mktemp("small"))), "main")


def test_two_numbers_say_what_any_number_of_pairs_takes(
    small: Weights, compose: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("lora=qlora", "lora.dropout=0.05", "hardware.precision=fp32", "hardware.token_budget=10000")
    config = compose("hardware=cpu", "tracking=none", *words)
    compute, shape = choose_compute(config.hardware.device, config.hardware.precision), model_config(small)
    drawn = torch.get_rng_state()
    found = needs.need_of(config, shape, compute, True, False, 256)
    assert found is not None
    assert torch.equal(torch.get_rng_state(), drawn), "a run's random numbers stay what they are"
    side = [1] * 240
    pairs = [TokenPair(f"{i}", [1] * 16, side, side) for i in range(5)]
    trace = Trace(Host(), "cpu")
    with fake_host(), trace:
        made = Rehearsal(config, shape, compute, pairs, trace)
        stage = made.train([pairs[:1], pairs], gradients=True)[-1]
    expected = found.fixed + found.per_token * made.tokens(pairs)
    assert expected == pytest.approx(stage.peak - stage.held, rel=0.03)
    monkeypatch.setattr(needs, "measure", None)
    assert needs.need_of(config, shape, compute, True, False, 256) == found, "remembered"


def test_a_plan_follows_what_was_measured() -> None:
    from packed_models import random_pairs, tiny_model

    model, asked = tiny_model("llama"), []
    pairs = random_pairs(8)

    def need(checkpointing: bool, longest: int) -> Need:
        asked.append(checkpointing)
        return Need(1000.0, 50.0 if checkpointing else 5000.0)

    def made(free: int) -> tuple[int, bool]:
        found = plan(model, pairs, engine="packed", dtype=torch.float32, free=free, need=need)
        return found.token_budget, found.activation_checkpointing

    assert made(10**12) == (1024, False)
    assert asked == [], "where there is plenty nothing is measured"
    assert made(int(2 * SPACE * (1000 + 5000 * 600))) == (512, False)
    assert asked == [False]
    assert made(int(2 * SPACE * (1000 + 5000 * 20))) == (1024, True)
    assert Need(1000.0, 5.0).tokens(500) == 0
