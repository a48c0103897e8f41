"""Sampling: common random numbers, batches that do not matter, greedy equal to transformers, stops counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from dpo.generation.sampling import Sampling, sample

PROMPTS = [[4, 8, 9], [4, 10], [4, 11, 12, 13, 14], [4, 15, 9, 9], [4, 8]]
SYSTEM = [5, 9, 13, 17, 21, 8, 12, 16, 20]


@pytest.fixture(scope="module")
def model(trained: Path) -> torch.nn.Module:
    from omegaconf import OmegaConf

    return AutoModelForCausalLM.from_pretrained(OmegaConf.load(trained / "config.yaml").model.path).eval()


def _draw(model: torch.nn.Module, batch: int, order: list[int] | None = None, **changes: Any) -> list[list[int]]:
    system, share = changes.pop("system", []), changes.pop("share_prefix", False)
    order = order or list(range(len(PROMPTS)))
    settings = Sampling(**({"temperature": 1.0, "top_k": 50, "max_new_tokens": 12, "seed": 3} | changes))
    found: dict[int, list[int]] = {}
    prompts = [system + PROMPTS[i] for i in order]
    seeds = [f"prompt {i}" for i in order]
    for indices, answers in sample(model, prompts, settings, {2}, 2, batch, row_seeds=seeds, share_prefix=share):
        found |= {order[i]: answer.ids for i, answer in zip(indices, answers, strict=True)}
    return [found[i] for i in range(len(PROMPTS))]


def test_an_answer_depends_on_no_other_prompt_and_no_batch(model: torch.nn.Module) -> None:
    alone = _draw(model, 1)
    assert _draw(model, 5) == alone
    assert _draw(model, 2, order=[3, 1, 4, 0, 2]) == alone
    assert _draw(model, 5, seed=4) != alone


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_shared_prefix_is_read_once_and_changes_no_answer(model: torch.nn.Module, temperature: float) -> None:
    widths = []
    hook = model.register_forward_pre_hook(
        lambda module, args, kwargs: widths.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    plain = _draw(model, 5, system=SYSTEM, temperature=temperature)
    without, widths[:] = widths[0], []
    shared = _draw(model, 5, system=SYSTEM, temperature=temperature, share_prefix=True)
    hook.remove()
    assert shared == plain
    assert widths[0] == len(SYSTEM) + 1
    assert sum(widths[:2]) < without / 2


def test_greedy_equals_transformers(model: torch.nn.Module) -> None:
    mine = _draw(model, 5, temperature=0.0)
    for prompt, answer in zip(PROMPTS, mine, strict=True):
        ids = torch.tensor([prompt])
        whole = model.generate(ids, do_sample=False, max_new_tokens=12, eos_token_id=2, pad_token_id=2)
        theirs = whole[0, len(prompt) :].tolist()
        assert answer == (theirs[: theirs.index(2)] if 2 in theirs else theirs)


def test_draws_follow_the_softmax(model: torch.nn.Module) -> None:
    count = 3000
    settings = Sampling(0.7, 5, 1, 0)
    prompts = [PROMPTS[0]] * count
    drawn = [
        answer.ids[0] if answer.ids else 2
        for _, answers in sample(model, prompts, settings, {2}, 2, 500, row_seeds=[str(i) for i in range(count)])
        for answer in answers
    ]
    with torch.no_grad():
        top, index = model(torch.tensor([PROMPTS[0]])).logits[0, -1].topk(5)
    for token, probability in zip(index.tolist(), torch.softmax(top / 0.7, -1).tolist(), strict=True):
        share = drawn.count(token) / count
        assert share == pytest.approx(probability, abs=4 * (probability * (1 - probability) / count) ** 0.5)
    assert set(drawn) <= set(index.tolist())


def test_every_answer_is_told_of_once_when_it_ends(model: torch.nn.Module) -> None:
    told: list[int] = []
    batches = sample(model, PROMPTS, Sampling(1.0, 50, 12, 5), {2, 3, 4, 5, 6, 7}, 2, 3, on_end=told.append)
    answers = [answer for _, part in batches for answer in part]
    assert sum(told) == len(answers) == len(PROMPTS)


def test_stop_tokens_end_an_answer_and_are_not_part_of_it(model: torch.nn.Module) -> None:
    everything = set(range(model.config.vocab_size))
    settings = Sampling(1.0, 50, 4, 0)
    for _, answers in sample(model, PROMPTS, settings, everything, 2, 5):
        assert all(answer.finished and not answer.ids for answer in answers)
    for _, answers in sample(model, PROMPTS, settings, set(), 2, 5):
        assert all(not answer.finished and len(answer.ids) == 4 for answer in answers)


def test_a_prompt_of_several_samples_is_read_once(model: torch.nn.Module) -> None:
    read = []
    hook = model.register_forward_pre_hook(
        lambda module, args, kwargs: read.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    order = [0, 0, 0, 2, 2]
    settings, seeds = Sampling(1.0, 50, 12, 3), [f"sample {i}" for i in range(5)]
    prompts = [PROMPTS[i] for i in order]

    def drawn(batch: int) -> dict[int, list[int]]:
        found = sample(model, prompts, settings, {2}, 2, batch, row_seeds=seeds)
        return {i: answer.ids for indices, answers in found for i, answer in zip(indices, answers, strict=True)}

    together = drawn(5)
    first = list(read)
    alone = drawn(1)
    hook.remove()
    assert together == alone
    assert first[0] == (2, 5)  # two prompts, then a token for each row that goes on
    assert first[1][1] == 1
    assert 2 < first[1][0] <= 5


def test_the_roomy_cache_holds_what_the_librarys_holds() -> None:
    from transformers.cache_utils import DynamicLayer

    from dpo.generation.memory import SPARE, RoomyLayer

    torch.manual_seed(0)
    theirs, mine = DynamicLayer(), RoomyLayer()
    rows = 3
    for step, new in enumerate([7, 1, 1, SPARE + 5, 1, 2, SPARE, 1]):
        states = torch.randn(rows, 2, new, 4), torch.randn(rows, 2, new, 6)
        for held, wanted in zip(mine.update(*states), theirs.update(*states), strict=True):
            assert torch.equal(held, wanted)
        if step == 1:
            mine.batch_repeat_interleave(2), theirs.batch_repeat_interleave(2)
            rows = 6
        kept = torch.tensor([0, 2, 2, 5]) if step == 2 else torch.arange(3)
        if step in (2, 5):
            mine.batch_select_indices(kept), theirs.batch_select_indices(kept)
            rows = len(kept)
        assert mine.get_seq_length() == theirs.get_seq_length()


def test_the_head_is_given_states_that_lie_together(model: torch.nn.Module) -> None:
    seen = []
    hook = model.get_output_embeddings().register_forward_hook(
        lambda module, args, out: seen.append(args[0].is_contiguous())
    )
    _draw(model, 5)
    hook.remove()
    assert seen
    assert all(seen)


def test_a_cache_that_cannot_lose_rows_is_not_used() -> None:
    from transformers import FalconH1Config, FalconH1ForCausalLM

    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "vocab_size": 32, "head_dim": 8}
    mixer = {"mamba_d_ssm": 16, "mamba_n_heads": 2, "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_d_state": 4}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    torch.manual_seed(0)
    model = FalconH1ForCausalLM(FalconH1Config(**size, **mixer, **heads)).eval()
    settings = Sampling(temperature=1.0, top_k=50, max_new_tokens=6, seed=3)
    twice = [[4, 8, 9, 10], [4, 8, 9, 10], [4, 10]]
    batched = sample(model, twice, settings, {2}, 2, 3, row_seeds=["a", "b", "c"])
    alone = sample(model, twice, settings, {2}, 2, 1, row_seeds=["a", "b", "c"])
    assert {i: x.ids for rows, xs in batched for i, x in zip(rows, xs, strict=True)} == {
        i: x.ids for rows, xs in alone for i, x in zip(rows, xs, strict=True)
    }
