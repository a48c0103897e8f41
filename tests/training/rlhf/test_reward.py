"""A reward model: its loss and scores are a sequence classifier's, and its runs are runs like any other."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from packed_models import random_pairs, tiny_model

from dpo.config.evaluation import Evaluate
from dpo.config.judges import Reading, RewardModelJudge
from dpo.data.pair import Message, TokenPair
from dpo.engine.micro_batch import Whole
from dpo.engine.packed_forward import install
from dpo.engine.reward_model import RewardModel
from dpo.engine.rewards import packed_rewards, padded_rewards, rewards_of
from dpo.errors import ConfigError
from dpo.evaluation.judges.interface import Item
from dpo.evaluation.judges.reward.model import build
from dpo.modeling.reward_head import add_head
from dpo.records.run import read_record
from dpo.training.rlhf.reward import reward_loss


def scored(model: Any) -> Any:
    """With a head that is not zero."""
    torch.manual_seed(3)
    add_head(model).score.weight.data.normal_()
    return model


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_packed_and_padded_rewards_are_those_of_each_sequence_alone(family: str) -> None:
    model, pairs = scored(tiny_model(family, torch.float32)), random_pairs(6, seed=2)
    pairs.append(TokenPair("single", [4, 5], [6, 7], []))
    wanted = []
    for pair in pairs:
        for ids in (pair.chosen_ids, pair.rejected_ids):
            states = model.base_model(input_ids=torch.tensor([pair.prompt_ids + ids])).last_hidden_state
            wanted.append(float(states[0, -1] @ model.score.weight[0]))
    padded = padded_rewards(model, pairs).flatten().tolist()
    assert install(model) is None
    packed = packed_rewards(model, pairs).flatten().tolist()
    assert padded == pytest.approx(wanted, rel=1e-4, abs=1e-5)
    assert packed == pytest.approx(wanted, rel=1e-4, abs=1e-5)
    for budget in (20, 1000):
        found = [reward for both in rewards_of(model, pairs, budget) for reward in both]
        assert found == pytest.approx(wanted, rel=1e-4, abs=1e-5)


def test_the_loss_by_hand() -> None:
    model, pairs = scored(tiny_model("llama", torch.float32)), random_pairs(4)
    rewards = padded_rewards(model, pairs).tolist()
    loss, figures = reward_loss("plain")(model, pairs, Whole(pairs), {})
    assert float(loss) == pytest.approx(sum(math.log1p(math.exp(r - c)) for c, r in rewards) / 4, rel=1e-5)
    assert figures["rewards/accuracies"] == sum(c > r for c, r in rewards) / 4
    assert figures["rewards/margins"] == pytest.approx(sum(c - r for c, r in rewards) / 4, rel=1e-5)
    zero = add_head(tiny_model("llama", torch.float32))
    assert float(reward_loss("plain")(zero, pairs, Whole(pairs), {})[0]) == pytest.approx(math.log(2))


def test_a_killed_run_ends_in_the_same_bits(rewarded: Path, tmp_path: Path) -> None:
    argv = tiny.arguments(rewarded / "model", rewarded / "pairs.jsonl", "dpo=reward", "dataset.test_fraction=0.4")
    assert tiny.run("train", argv, tmp_path, ("step", 5, tiny.KILL))[0] == -tiny.KILL
    code, output = tiny.run("train", argv, tmp_path)
    assert code == 0, output
    assert "continuing at step 3" in output
    assert tiny.outcome(tmp_path) == tiny.outcome(rewarded)
    _, lines = tiny.outcome(rewarded)
    looks = [line["loss"] for line in lines if line["kind"] == "eval"]
    assert looks[0] == pytest.approx(math.log(2), abs=1e-4)
    assert looks[-1] < looks[0]


def test_it_is_a_sequence_classifier_of_transformers(rewarded: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    run, _ = tiny.record(rewarded)
    base = AutoModelForSequenceClassification.from_pretrained(rewarded / "model", num_labels=1, dtype=torch.float32)
    theirs = PeftModel.from_pretrained(base, run / "adapter").eval()
    theirs.config.pad_token_id = 0
    from dpo.config.hardware import Device, Precision
    from dpo.modeling.device import choose_compute
    from dpo.modeling.policy import load_trained

    own, _, _ = load_trained(run, choose_compute(Device.cpu, Precision.fp32), quantized=False)
    pair = TokenPair("p", [1, 4, 9, 2], [8, 7, 2], [10, 11, 12, 2])
    with torch.no_grad():
        wanted = [
            float(theirs(input_ids=torch.tensor([pair.prompt_ids + ids])).logits)
            for ids in (pair.chosen_ids, pair.rejected_ids)
        ]
    assert list(rewards_of(own, [pair], 100)[0]) == pytest.approx(wanted, rel=1e-4, abs=1e-5)
    assert abs(wanted[0]) > 1e-4


def test_evaluation_says_how_often_it_is_right_and_how_surely(
    rewarded: Path, tmp_path: Path, compose_verb: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    from dpo.config.evaluation import register
    from dpo.evaluate import evaluate

    run = Path(shutil.copytree(tiny.record(rewarded)[0], tmp_path / "run"))
    register()
    folder = evaluate(compose_verb("evaluate", Evaluate, f"run='{run}'", "evaluation.resamples=200"))
    summary = json.loads((folder / "summary.json").read_text())
    pairs = [json.loads(line) for line in (folder / "pairs.jsonl").read_text().splitlines()]
    right = [row["policy_chosen"] > row["policy_rejected"] for row in pairs]
    even = [ok for ok, row in zip(right, pairs, strict=True) if row["chosen_tokens"] >= row["rejected_tokens"]]
    figures = summary["pairs"]
    assert figures["accuracy"]["value"] == pytest.approx(sum(right) / len(right))
    assert figures["accuracy_not_shorter"]["value"] == pytest.approx(sum(even) / len(even))
    assert 0 < len(even) < len(right)
    assert figures["accuracy_not_shorter"]["low"] < figures["accuracy_not_shorter"]["high"]
    assert figures["calibration_error"]["high"] > 0
    assert summary["answers"]["answers"] == 0
    said = capsys.readouterr().out
    assert "reward accuracy" in said
    assert "where chosen is not the shorter answer" in said
    assert "answer length" not in said


def test_the_judge_takes_the_run(rewarded: Path) -> None:
    run, record = tiny.record(rewarded)
    settings = RewardModelJudge(
        path=str(run), revision="main", label=None, reading=Reading.chat, chat_template=None, quantization=None,
        batch_size=2,
    )  # fmt: skip
    items = [
        Item(str(i), (Message("user", "the cat sat"),), answer, finished)
        for i, (answer, finished) in enumerate(
            [("dog ran home", True), ("dog ran home", False), ("", True), ("", False)]
        )
    ]
    judge = build(settings)
    found = {verdict.id: verdict.score for part in judge.judge(items) for verdict in part}
    model = RewardModel(run)
    ids = model.tokenizer("<|im_start|> user\nthe cat sat <|im_end|>\n<|im_start|> assistant\ndog ran home <|im_end|>")[
        "input_ids"
    ]
    end = record["end_of_turn"]
    assert ids[-1] == end
    prompt, answer = ids[:-4], ids[-4:]
    wanted = model.rewards([TokenPair("a", prompt, answer, answer[:-1]), TokenPair("b", prompt, [end], [])])
    # A cut answer is not read as if it had ended; padding (here the end of turn itself) hides nothing.
    assert found["0"] == pytest.approx(wanted[0][0], abs=1e-2)
    assert found["1"] == pytest.approx(wanted[0][1], abs=1e-2)
    assert found["2"] == pytest.approx(wanted[1][0], abs=1e-2)
    assert found["0"] != found["1"]
    assert found["3"] == found["2"]


def test_what_it_cannot_be_asked_for_is_named(rewarded: Path, trained: Path, compose: Any) -> None:
    for words, said in (
        (["lora=full"], "lora=full with dpo=reward"),
        (["dpo.beta=0.1"], "dpo.beta=0.1 with dpo=reward"),
        (["model.adapter=x", "lora=lora"], "model.adapter with dpo=reward"),
        (["dataset=shp", "dataset.soft_labels=true"], "soft_labels"),
        (["hardware.parallel=ddp"], "hardware.parallel=ddp with dpo=reward"),
    ):
        with pytest.raises(ConfigError, match=said):
            compose("dpo=reward", *words)
    run, _ = tiny.record(rewarded)
    code, output = tiny.run("chat", [str(run)], rewarded)
    assert code == 2
    assert "a reward model, which writes no answers" in output
    assert read_record(run)["status"] == "complete"
    settings = RewardModelJudge(str(trained), "main", None, Reading.chat, None, None, 2)
    with pytest.raises(ConfigError, match="not of dpo=reward"):
        build(settings)
