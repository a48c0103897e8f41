"""Several micro-batches at once: the same step as one after the other, and the same bits every time."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from packed_models import gradients, random_pairs, tiny_model, with_lora
from tiny_trainers import make_trainer, move

from dpo.engine.budget import cost, packed_tokens, split
from dpo.engine.choice import Engine
from dpo.engine.log_probs import sequence_log_probs
from dpo.engine.micro_batch import packed_loss
from dpo.engine.packed_forward import install
from dpo.engine.workers import Workers, most_at_once
from dpo.training.arguments import build_arguments, objective

PAIRS = random_pairs(11, longest=30)


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@given(st.integers(1, 30), st.integers(1, 300), st.integers(0, 5), st.integers(2, 4))
def test_an_even_split_keeps_every_pair_and_the_budget(count: int, budget: int, seed: int, at_once: int) -> None:
    pairs = random_pairs(count, seed)
    groups = split(pairs, budget, "packed", at_once)
    assert sorted(pair.id for group in groups for pair in group) == sorted(pair.id for pair in pairs)
    assert groups == split(pairs, budget, "packed", at_once)
    assert all(len(group) == 1 or cost(group, "packed") <= budget for group in groups)
    assert all([p.id for p in group] == [p.id for p in pairs if p in group] for group in groups)
    assert len(groups) % at_once == 0 or len(groups) == count


def test_an_even_split_is_even() -> None:
    loads = [packed_tokens(group) for group in split(PAIRS, 10_000, "packed", 2)]
    assert len(loads) == 2
    assert abs(loads[0] - loads[1]) <= min(packed_tokens([pair]) for pair in PAIRS)


def test_results_come_in_order_from_threads_of_their_own_and_errors_arrive(two_threads: None) -> None:
    workers = Workers.of(2)
    meet = threading.Barrier(2, timeout=30)

    def task(number: int) -> tuple[int, int, str]:
        if number < 4:
            meet.wait()
        if number == 4:
            raise ValueError("the fifth")
        return number, torch.get_num_threads(), threading.current_thread().name

    results = workers.map(task, range(5))
    done = [next(results) for _ in range(4)]
    assert [number for number, _, _ in done] == [0, 1, 2, 3]
    assert {threads for _, threads, _ in done} == {1}
    assert len({name for _, _, name in done}) == 2
    with pytest.raises(ValueError, match="the fifth"):
        next(results)
    assert torch.get_num_threads() == 2


def test_only_where_it_is_exact_and_cheap(two_threads: None) -> None:
    policy = with_lora(tiny_model("llama"), rank=1)
    assert most_at_once(policy, "cpu", 4) == 2
    assert most_at_once(policy, "cpu", 1) == 1
    assert most_at_once(policy, "cuda", 4) == 1
    assert most_at_once(tiny_model("llama").requires_grad_(True), "cpu", 4) == 1
    policy.get_base_model().model.layers[0].self_attn.attention_dropout = 0.1
    assert most_at_once(policy, "cpu", 4) == 1
    dropping = with_lora(tiny_model("llama"), rank=1)
    dropping.get_base_model().model.layers[0].self_attn.q_proj.lora_dropout["default"] = torch.nn.Dropout(0.1)
    assert most_at_once(dropping, "cpu", 4) == 1


@pytest.mark.parametrize("loss", ["sigmoid", "mpo"])
def test_a_step_is_the_same_as_alone_and_to_the_bit_the_same_again(
    compose, tmp_path: Path, two_threads: None, loss: str
) -> None:
    config = compose(f"dpo={loss}", "dpo.beta=0.3", f"dpo.batch_size={len(PAIRS)}")
    loss = packed_loss(objective(config.dpo))
    trainer = make_trainer(
        tiny_model("llama", torch.float32),
        build_arguments(config, trainers_cpu(), tmp_path),
        PAIRS,
        tmp_path,
        Engine(loss, split, 120),
    )
    move(trainer.model)

    def step(at_once: int) -> tuple[float, dict[str, torch.Tensor], dict[str, float], dict[str, float]]:
        trainer.engine = Engine(loss, lambda p, b, n: split(p, b, at_once=n), 120, Workers.of(at_once))
        trainer.model.train()
        value = float(trainer._forward_backward(trainer.model, PAIRS, 1))
        return value, gradients(trainer.model), trainer._drain(), trainer.evaluate_now()

    alone = step(1)
    assert len(split(PAIRS, 120, at_once=2)) >= 4
    together = [step(2) for _ in range(3)]
    for value, found, figures, dev in together:
        assert value == together[0][0]
        assert figures == together[0][2]
        assert dev == together[0][3]
        assert all(torch.equal(found[name], gradient) for name, gradient in together[0][1].items())
    assert together[0][0] == pytest.approx(alone[0], rel=1e-5)
    # TRL takes some of its figures over the tokens of a batch; those depend on the split.
    for name in ("loss", "rewards/margins", "rewards/accuracies", "logps/chosen", "logps/rejected"):
        assert together[0][2][name] == pytest.approx(alone[2][name], rel=1e-4, abs=1e-6), name
        assert together[0][3][name] == pytest.approx(alone[3][name], rel=1e-4, abs=1e-6), name
    assert together[0][1].keys() == alone[1].keys()
    for name, gradient in alone[1].items():
        assert float(gradient.abs().max()) > 0, name
        torch.testing.assert_close(together[0][1][name], gradient, rtol=0, atol=2e-5 * float(gradient.abs().max()))


def trainers_cpu():
    from dpo.modeling.device import Compute

    return Compute("cpu", torch.float32)


def test_scores_keep_autocast_in_their_threads(two_threads: None) -> None:
    policy = with_lora(tiny_model("llama", torch.float32))
    assert install(policy) is None
    exact = torch.tensor(sequence_log_probs(policy, PAIRS, 60))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = torch.tensor(sequence_log_probs(policy, PAIRS, 60))
    assert not torch.equal(exact, rounded)
    assert (exact - rounded).abs().max() < 0.05 * exact.abs().max()


def test_no_thread_outlives_what_it_was_made_for(two_threads: None) -> None:
    policy = with_lora(tiny_model("llama"), rank=1)
    assert install(policy) is None
    before = set(threading.enumerate())
    for _ in range(3):
        assert len(sequence_log_probs(policy, PAIRS, 60)) == len(PAIRS)
    assert set(threading.enumerate()) <= before
    forgotten = Workers.of(2)
    assert list(forgotten.map(abs, [1, -2])) == [1, 2]
    del forgotten
    gc.collect()
    for thread in set(threading.enumerate()) - before:
        thread.join(10)
    assert set(threading.enumerate()) <= before


def test_less_memory_is_smaller_parts_and_then_fewer_at_once(two_threads: None) -> None:
    engine = Engine(None, lambda p, b, n: split(p, b, at_once=n), 120, Workers.of(2))
    held = []
    while True:
        held.append(engine.held(PAIRS))
        better = [smaller for smaller in engine.smaller() if smaller.held(PAIRS) < held[-1]]
        if not better:
            break
        engine = better[0]
    assert held == sorted(held, reverse=True)
    assert engine.workers.count == 1
    assert held[-1] == max(packed_tokens([pair]) for pair in PAIRS)
