"""RLOO: gradients are TRL's, the baseline is what is left of each prompt's others, draws are by rule, runs resume."""

from __future__ import annotations

import json
import math
import random
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from datasets import Dataset
from packed_models import gradients, random_pairs, tiny_model
from peft import get_peft_model
from tiny_trainers import lora, move, tokenizer
from trl import RLOOConfig, RLOOTrainer

from dpo.config.evaluation import Evaluate
from dpo.data.pair import TokenPair
from dpo.engine.log_probs import sequence_log_probs
from dpo.engine.micro_batch import Whole, packed_figures, padded_figures
from dpo.engine.packed_forward import install
from dpo.errors import ConfigError
from dpo.generation.sampling import Answer, Sampling, sample
from dpo.losses.rloo import leave_one_out
from dpo.training.rlhf import draws
from dpo.training.rlhf.draws import Drawing, draw, step_seed
from dpo.training.rlhf.rloo import in_groups, rloo_loss

BETA, SAMPLES = 0.3, 4
PROMPTS = [pair.prompt_ids for pair in random_pairs(3, seed=5, longest=16)]
ANSWERS = [
    [*ids[:7], 2] for pair in random_pairs(6, seed=8, longest=16) for ids in (pair.chosen_ids, pair.rejected_ids)
]
RUN = ["dpo=rloo", "dataset.test_fraction=0.4", "dpo.max_new_tokens=12", "dpo.eval_limit=3"]


def reward(ids: list[int]) -> float:
    return (sum(ids) % 11) / 4 - len(ids) / 8


def pairs() -> list[TokenPair]:
    """Two pairs a prompt, of four samples."""
    return [
        TokenPair(f"p{i // 2}#{i % 2}", PROMPTS[i // 2], ANSWERS[2 * i], ANSWERS[2 * i + 1])
        for i in range(len(ANSWERS) // 2)
    ]


def policy() -> Any:
    model = get_peft_model(tiny_model("llama", torch.float32), lora())
    move(model)
    return model


class Given(RLOOTrainer):
    """TRL's, which draws what it is given."""

    def _tokenize_prompts(self, prompts: Any) -> Any:
        return [ids for ids in PROMPTS for _ in range(SAMPLES)], None, {}

    def _generate_single_turn(self, *_: Any) -> Any:
        return ANSWERS


def theirs(folder: Path) -> tuple[torch.Tensor, dict[str, torch.Tensor], dict[str, float]]:
    args = RLOOConfig(
        output_dir=str(folder), beta=BETA, num_generations=SAMPLES, per_device_train_batch_size=len(ANSWERS),
        use_cpu=True, bf16=False, report_to="none", temperature=1.0, gradient_checkpointing=False,
    )  # fmt: skip
    trainer = Given(
        model=tiny_model("llama", torch.float32),
        peft_config=lora(),
        reward_funcs=lambda completion_ids, **_: [reward(ids) for ids in completion_ids],
        args=args,
        train_dataset=Dataset.from_list([{"prompt": "w3"}] * len(ANSWERS)),
        processing_class=tokenizer(),
    )
    # Given a trained adapter it would take that for the reference.
    named = dict(policy().named_parameters())
    for name, parameter in trainer.model.named_parameters():
        if parameter.requires_grad:
            parameter.data.copy_(named[name].data)
    trainer.model.train()
    inputs = trainer._generate_and_score_completions([{"prompt": "w3"}] * len(ANSWERS))
    trainer._compute_loss(trainer.model, inputs).backward()
    logged = {name: values[-1] for name, values in trainer._metrics["train"].items()}
    return inputs["advantages"], gradients(trainer.model), logged


@pytest.mark.parametrize("engine", ["packed", "plain"])
def test_the_gradient_is_that_of_trls_trainer(engine: str, tmp_path: Path) -> None:
    advantages, wanted, logged = theirs(tmp_path)
    model = policy()
    if engine == "packed":
        assert install(model) is None
    else:
        from trl.trainer.utils import add_fused_lm_head

        add_fused_lm_head(model.get_base_model(), outputs=("log_probs", "entropy"))
    step = pairs()
    rewards = {pair.id: (reward(pair.chosen_ids), reward(pair.rejected_ids), 0) for pair in step}
    with model.disable_adapter():
        off = sequence_log_probs(model, step, 1000)
    reference = {pair.id: scores for pair, scores in zip(step, off, strict=True)}
    forward = packed_figures if engine == "packed" else padded_figures
    loss = rloo_loss(forward, BETA, SAMPLES // 2, lambda: rewards)
    total = 0.0
    figures: Counter[str] = Counter()
    # In parts of one prompt and of two: what a step is does not hang on its split.
    for part in (step[:2], step[2:]):
        value, found = loss(model, part, Whole(step), reference)
        (value * len(part) / len(step)).backward()
        total += float(value) * len(part) / len(step)
        figures.update({name: number * len(part) / len(step) for name, number in found.items()})
    largest = max(float(g.abs().max()) for g in wanted.values())
    assert largest > 0
    own = gradients(model)
    assert own.keys() == wanted.keys()
    for name, gradient in own.items():
        assert float((gradient - wanted[name]).abs().max()) <= 2e-4 * largest, name
    # The value is minus what is maximized.
    kl = [
        mine - theirs
        for one, two in zip(sequence_log_probs(model, step, 1000), off, strict=True)
        for mine, theirs in zip(one, two, strict=True)
    ]
    returns = [reward(ids) - BETA * divergence for ids, divergence in zip(ANSWERS, kl, strict=True)]
    assert total == pytest.approx(-sum(returns) / len(returns), rel=1e-4)
    by_hand = [
        value - sum(others) / 3
        for i, value in enumerate(returns)
        for others in [[returns[j] for j in range(i // 4 * 4, i // 4 * 4 + 4) if j != i]]
    ]
    assert advantages.tolist() == pytest.approx(by_hand, rel=1e-3, abs=1e-4)
    assert figures["kl"] == pytest.approx(sum(kl) / len(kl), rel=1e-4)
    assert figures["reward"] == pytest.approx(sum(map(reward, ANSWERS)) / len(ANSWERS), rel=1e-5)
    assert figures["completions/mean_length"] == pytest.approx(logged["completions/mean_length"])


@pytest.mark.parametrize("count", [2, 3, 5])
def test_leave_one_out_by_brute_force(count: int) -> None:
    generator = torch.Generator().manual_seed(count)
    returns = torch.randn(4, count, generator=generator)
    wanted = [
        [float(row[i]) - sum(float(row[j]) for j in range(count) if j != i) / (count - 1) for i in range(count)]
        for row in returns
    ]
    assert leave_one_out(returns).tolist() == [pytest.approx(row, abs=1e-5) for row in wanted]
    # Of an odd number of samples the last pair has one answer.
    wider = torch.cat([returns, torch.full((4, 1), 99.0)], dim=1)
    there = torch.tensor([True] * count + [False]).expand(4, -1)
    assert leave_one_out(wider, there).tolist() == [pytest.approx([*row, 0.0], abs=1e-5) for row in wanted]


def test_draws_come_from_the_whole_distribution() -> None:
    model = tiny_model("llama", torch.float32)
    prompt = [5, 6, 7]
    with torch.no_grad():
        wanted = model(torch.tensor([prompt])).logits[0, -1].softmax(-1)
    sampling, count = Sampling(1.0, 0, 1, 3), 4000
    [(_, answers)] = sample(model, [prompt] * count, sampling, set(), 0, count)
    found = torch.bincount(torch.tensor([answer.ids[0] for answer in answers]), minlength=97) / count
    deviation = (wanted * (1 - wanted) / count).sqrt()
    assert float(((found - wanted).abs() / (deviation + 1e-4)).max()) < 4.5
    # Far down the tail too, where the likeliest fifty would have nothing.
    tail = wanted.argsort()[:47]
    assert float(found[tail].sum()) == pytest.approx(float(wanted[tail].sum()), abs=0.02)
    again = next(iter(sample(model, [prompt] * count, sampling, set(), 0, count)))[1]
    assert [a.ids for a in again] == [a.ids for a in answers]


def test_cut_and_empty_answers_are_scored_as_they_stand_and_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    given = [Answer([5, 6], True), Answer([5, 6, 7], False), Answer([], True)]
    monkeypatch.setattr(draws, "sample", lambda *_, **__: iter([(list(range(3)), given)]))
    drawing = Drawing(3, 3, 0.5, frozenset({2, 9}), 2, 2)
    found = draw(None, [TokenPair("p", [1, 4], [8], [8])], drawing, 0)
    first, second = found.pairs
    assert (first.chosen_ids, first.rejected_ids) == ([5, 6, 2], [5, 6, 7])
    # Empty: nothing but its end. Of an odd number the last has no other beside it.
    assert (second.chosen_ids, second.rejected_ids) == ([2], [])
    assert found.penalties == {first.id: (0.0, 0.5), second.id: (0.5, 0.0)}
    assert found.cut == {first.id: 1, second.id: 0}
    assert {pair.prompt_ids[1] for pair in found.pairs} == {4}


def test_a_step_of_nothing_but_cut_answers_still_trains() -> None:
    model = policy()
    assert install(model) is None
    step = [TokenPair(p.id, p.prompt_ids, p.chosen_ids[:-1] or [5], p.rejected_ids[:-1] or [6]) for p in pairs()]
    rewards = {p.id: (reward(p.chosen_ids) - 1, reward(p.rejected_ids) - 1, 2) for p in step}
    with model.disable_adapter():
        off = sequence_log_probs(model, step, 1000)
    loss = rloo_loss(packed_figures, BETA, 2, lambda: rewards)
    value, figures = loss(model, step, Whole(step), {p.id: s for p, s in zip(step, off, strict=True)})
    value.backward()
    assert figures["completions/clipped_ratio"] == 1
    assert max(float(g.abs().max()) for g in gradients(model).values()) > 0


def test_a_prompts_samples_stay_together() -> None:
    draw_from = random.Random(0)
    step = [TokenPair(str(i), [1] * draw_from.randint(1, 9), [2] * 5, [3] * 5) for i in range(12)]
    for engine in ("packed", "plain"):
        for budget, at_once in ((1, 1), (60, 1), (10_000, 1), (10_000, 3)):
            parts = in_groups(3, engine)(step, budget, at_once)
            assert [pair for part in parts for pair in part] == step
            assert all(len(part) % 3 == 0 for part in parts)
            assert len(parts) >= at_once
    assert len(in_groups(3, "packed")(step, 1, 1)) == 4
    assert len(in_groups(3, "packed")(step, 10_000, 1)) == 1


def arguments(root: Path, *more: str) -> list[str]:
    run, _ = tiny.record(root)
    return tiny.arguments(root / "model", root / "pairs.jsonl", *RUN, f"dpo.reward={run}", *more)


@pytest.mark.parametrize("more", [[], pytest.param(["dpo.samples=3", "lora=lora"], marks=pytest.mark.slow)])
def test_a_killed_run_ends_in_the_same_bits(
    rewarded: Path, tmp_path: Path, more: list[str], compose_verb: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """In NF4 as well; past the first epoch; and it is evaluated like any run."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for folder in (whole, cut):
        folder.mkdir()
    argv = arguments(rewarded, "dpo.max_steps=9", *more)
    code, output = tiny.run("train", argv, whole)
    assert code == 0, output
    assert "reference identity holds" in output
    assert "on answers drawn for dev prompts the mean reward went from" in output
    assert tiny.run("train", argv, cut, ("step", 8, tiny.KILL))[0] == -tiny.KILL
    code, output = tiny.run("train", argv, cut)
    assert code == 0, output
    assert "continuing at step 6" in output
    assert tiny.outcome(cut) == tiny.outcome(whole)
    run, record = tiny.record(whole)
    _, lines = tiny.outcome(whole)
    steps = [line for line in lines if line["kind"] == "train"]
    assert steps[0]["kl"] == pytest.approx(0, abs=1e-2)
    assert steps[-1]["kl"] != steps[0]["kl"]
    assert max(line["epoch"] for line in steps) > 1
    [parent] = record["parents"]
    assert parent["what"] == "reward"
    assert parent["cost"]["flops"] > 0
    phases = json.loads((run / "ledger.json").read_text())["phases"]
    assert min(phases[name]["flops"] for name in ("train", "generate", "score")) > 0
    from dpo.config.evaluation import register
    from dpo.evaluate import evaluate

    register()
    copy = Path(shutil.copytree(run, tmp_path / "copy"))
    words = ("evaluation.resamples=200", "evaluation.max_new_tokens=8", "evaluation.prompts=4")
    folder = evaluate(compose_verb("evaluate", Evaluate, f"run='{copy}'", *words))
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["divergence"]["per_answer"]["value"] != 0
    assert "KL from the reference" in capsys.readouterr().out


def test_what_it_cannot_be_asked_for_is_named(rewarded: Path, trained: Path, tmp_path: Path, compose: Any) -> None:
    for words, said in (
        (["lora=full"], "lora=full with dpo=rloo"),
        (["dpo.samples=1"], "dpo.samples=1: must be 2 to 1024"),
        (["model.adapter=x"], "model.adapter with dpo=rloo"),
        (["hardware.parallel=ddp"], "hardware.parallel=ddp with dpo=rloo"),
    ):
        with pytest.raises(ConfigError, match=said):
            compose("dpo=rloo", "dpo.reward=x", *words)
    with pytest.raises(ConfigError, match=r"dpo\.reward: needs a value"):
        compose("dpo=rloo")
    argv = tiny.arguments(rewarded / "model", rewarded / "pairs.jsonl", *RUN, f"dpo.reward={trained}")
    code, output = tiny.run("train", argv, tmp_path)
    assert code == 2
    assert "not a run of dpo=reward" in output


def test_the_seed_of_a_step_is_its_own() -> None:
    seeds = {step_seed(seed, kind, step) for seed in (0, 1) for kind in ("train", "dev") for step in range(100)}
    assert len(seeds) == 400
    assert max(seeds) < 2**32
    assert step_seed(7, "train", 3) == step_seed(7, "train", 3)
    assert math.log2(max(seeds)) > 30
