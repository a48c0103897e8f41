"""Before step 1 policy and reference are one function: what rounding leaves passes, another base does not."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from dpo.config.lora import Quantization, QuantType
from dpo.data.pair import TokenPair
from dpo.engine.log_probs import sequence_log_probs
from dpo.engine.packed_forward import install
from dpo.errors import Diverged
from dpo.modeling.device import Compute
from dpo.modeling.policy import load_base
from dpo.modeling.weights import resolve
from dpo.train import train
from dpo.training.checks.start_identity import LEAST, MOST, Rounding, Start, check_identity, eps_of, score_start

NF4 = Quantization(bits=4, type=QuantType.nf4, double=True)
BUDGET = 4096


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_model(tmp_path_factory.mktemp("base") / "model")


@pytest.fixture(scope="module")
def pairs() -> list[TokenPair]:
    draw = torch.Generator().manual_seed(0)

    def ids(least: int) -> list[int]:
        length = least + int(torch.randint(8, (1,), generator=draw))
        return torch.randint(3, 26, (length,), generator=draw).tolist()

    return [TokenPair(f"p:{i}", ids(4), ids(2), ids(2)) for i in range(24)]


def changed(model: Any) -> Any:
    """The base with every number moved by a fortieth of the numbers' deviation."""
    other, draw = copy.deepcopy(model), torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in other.parameters():
            if parameter.is_floating_point():
                parameter += (5e-4 * torch.randn(parameter.shape, generator=draw)).to(parameter.dtype)
    return other


def loss_at_start(policy: Any, reference: Any) -> float:
    """Mean sigmoid loss at beta 0.1."""
    margins = [0.1 * ((policy[k][0] - v[0]) - (policy[k][1] - v[1])) for k, v in reference.items()]
    return sum(math.log1p(math.exp(-m)) for m in margins) / len(margins)


@pytest.mark.parametrize("engine", ["packed", "plain"])
@pytest.mark.parametrize(
    ("dtype", "quantization"),
    [(torch.float32, None), (torch.bfloat16, None), (torch.bfloat16, NF4)],
    ids=["fp32", "bf16", "nf4"],
)
def test_a_cache_filled_in_other_batches_passes_and_one_of_a_slightly_other_base_does_not(
    folder: Path, pairs: list[TokenPair], dtype: torch.dtype, quantization: Quantization | None, engine: str
) -> None:
    model = load_base(resolve(str(folder), "main"), quantization, Compute("cpu", dtype), "sdpa").eval()
    other = changed(model)
    if engine == "packed":
        assert install(model) is None or True
        install(other)
    start = score_start(model, pairs, dtype, BUDGET)
    for budget, chunk in ((BUDGET, 64), (1, 5), (40, 24)):
        parts = [pairs[i : i + chunk] for i in range(0, len(pairs), chunk)]
        sums = [score for part in parts for score in sequence_log_probs(model, part, budget)]
        check_identity(start, {pair.id: score for pair, score in zip(pairs, sums, strict=True)})
    reference = {p.id: s for p, s in zip(pairs, sequence_log_probs(other, pairs, BUDGET), strict=True)}
    # By the loss alone nobody would see it.
    assert loss_at_start(start.sums, reference) == pytest.approx(math.log(2), abs=3e-3)
    with pytest.raises(Diverged, match="the reference is not the starting policy"):
        check_identity(start, reference)


def test_the_bound_follows_from_the_precision_and_from_what_rounding_does_here() -> None:
    steps = [eps_of(dtype, "highest") for dtype in (torch.float32, torch.float16, torch.bfloat16)]
    assert steps == [2.0**-23, 2.0**-10, 2.0**-7]
    assert eps_of(torch.float32, "high") == 2.0**-10
    unit = steps[2] * 4.0
    assert Rounding(unit).bound(0.0, 1) == LEAST * unit
    assert Rounding(unit, unit).bound(0.0, 100) == pytest.approx(4 * unit * 10)
    assert Rounding(unit, 99.0).bound(0.0, 1) == MOST * unit
    # A long answer on a real model in bf16 where each row is computed alone: of 36 tokens, 0.0012 a token.
    assert Rounding(unit, 1e-6).bound(-100.0, 36) / 36 == pytest.approx(0.0013, abs=2e-4)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_log_probs_that_are_no_numbers_are_refused(value: float) -> None:
    start = Start({"a": (value, 0.0)}, {"a": (3, 3)}, Rounding(0.01))
    with pytest.raises(Diverged):
        check_identity(start, {"a": (0.0, 0.0)})
    with pytest.raises(Diverged):
        check_identity(Start({"a": (1.0, 0.0)}, {"a": (3, 3)}, Rounding(value)), {"a": (0.0, 0.0)})


def test_a_partly_warm_cache_passes(
    compose: Any, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DPO_OUTPUTS", str(tmp_path))
    words = ["model=custom", f"model.path={folder}", "dataset=local", "tracking=none", "dpo.batch_size=2", "lora=lora"]
    words += [
        f"dataset.path={tiny.make_pairs(tmp_path / 'pairs.jsonl', 30)}",
        "hardware=cpu",
        "hardware.precision=bf16",
    ]
    train(compose(*words, "hardware.engine=plain", "dpo.max_steps=1"))
    train(compose(*words, "hardware.engine=plain", "dpo.max_steps=3", "hardware.token_budget=48"))
    said = capsys.readouterr().out
    assert "reference: 0 pairs from the cache" in said
    assert "reference identity holds" in said.rpartition("pairs from the cache, 4 computed")[2]
