"""Soft labels from a source's rows to the loss: real rows trained on, the loss recomputed from rows and weights alone.

What a row says (which answer, how surely) is read by `real_rows.said`, ids come from the tokenizer's own template,
log-probs from a plain forward of the saved model and adapter: nothing of the code under test.
"""

from __future__ import annotations

import json
import math
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import real_rows
from tokenizer_families import chatml

from dpo.config.folder import options
from dpo.errors import ConfigError
from dpo.train import main as train

BETA = 0.5


def _webgpt(real_data: Path) -> list[dict[str, Any]]:
    """With ties: the sample holds none, so every fourth of its pairs becomes one."""
    ties = [{**row, "score_0": 0.0, "score_1": 0.0} for row in real_rows.webgpt(real_data)[::4]]
    return [row for four in zip(ties, *(real_rows.webgpt(real_data)[i::4] for i in (1, 2, 3)), strict=True)
            for row in four]  # fmt: skip


SOURCES: dict[str, Callable[[Path], list[dict[str, Any]]]] = {
    "shp": real_rows.shp,
    "webgpt": _webgpt,
    "helpsteer3": real_rows.helpsteer3,
}


def _model(folder: Path) -> Path:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = chatml()
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=8192, tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id, bos_token_id=None, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _files(source: str, real_data: Path, folder: Path) -> list[dict[str, Any]]:
    """Short rows of the source as train, validation and test files; returns those of validation."""
    rows = [row for row in SOURCES[source](real_data) if all(answer.strip() for answer in _said(source, row)[:2])]
    if source == "shp":  # a post stays on one side
        posts = [post for post, _ in Counter(row["post_id"] for row in rows).most_common()]
        side = dict(zip(posts, ("train", "validation", "train", "validation", "train", "test"), strict=True))
        parts = {name: [r for r in rows if side[r["post_id"]] == name] for name in ("train", "validation", "test")}
    else:
        short = sorted(rows, key=lambda row: sum(map(len, _said(source, row)[:2])) + len(_said(source, row)[3]))[:37]
        parts = {"test": short[:1], "validation": short[1::3], "train": short[2::3] + short[3::3]}
    for name, part in parts.items():
        (folder / f"{name}.jsonl").write_bytes(real_rows.jsonl(part))
    return parts["validation"]


def _said(source: str, row: dict[str, Any]) -> list[Any]:
    return real_rows.said(source, row)


def _log_prob(model: Any, tokenizer: Any, prompt: str, answer: str) -> float:
    """ln p(answer with its end of turn | prompt), one sequence, no padding."""
    import torch

    asked = [{"role": "user", "content": prompt}]
    before = tokenizer.apply_chat_template(asked, add_generation_prompt=True)["input_ids"]
    talk = [*asked, {"role": "assistant", "content": answer}]
    whole = tokenizer.apply_chat_template(talk)["input_ids"]
    end = len(whole) - whole[::-1].index(tokenizer.eos_token_id)
    assert whole[: len(before)] == before
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([whole[:end]])).logits[0].double().log_softmax(-1)
    return float(sum(logits[i - 1, whole[i]] for i in range(len(before), end)))


def _losses(run: Path, model_folder: Path, source: str, held: list[dict[str, Any]]) -> tuple[float, float]:
    """(the soft-label loss, what it were if every label were certain), from definition: arXiv:2305.18290, eq. 7."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    policy, tokenizer = PeftModel.from_pretrained(base, run / "adapter").eval(), chatml()
    soft = hard = 0.0
    for row in held:
        chosen, rejected, strength, prompt = _said(source, row)
        ratios = []
        for answer in (chosen, rejected):
            own = _log_prob(policy, tokenizer, prompt, answer)
            with policy.disable_adapter():
                ratios.append(own - _log_prob(policy, tokenizer, prompt, answer))
        z = BETA * (ratios[0] - ratios[1])
        soft += strength * math.log1p(math.exp(-z)) + (1 - strength) * math.log1p(math.exp(z))
        hard += math.log1p(math.exp(-z))
    return soft / len(held), hard / len(held)


@pytest.mark.parametrize("source", SOURCES)
def test_the_loss_on_real_rows_is_that_of_the_definition(
    source: str, real_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DPO_OUTPUTS", str(tmp_path / "outputs"))
    (rows := tmp_path / "rows").mkdir()
    (folder := tmp_path / "model").mkdir()
    held, model = _files(source, real_data, rows), _model(folder)
    command = [
        "model=custom", f"model.path={model}", f"dataset={source}", f"dataset.path={rows}", "dataset.soft_labels=true",
        "dataset.max_length=8000", "tracking=none", "hardware=cpu",
        "hardware.precision=fp32", "lora=lora", f"dpo.beta={BETA}", "dpo.learning_rate=0.05", "dpo.max_steps=3",
        "dpo.warmup_ratio=0", "dpo.eval_limit=null",
        *(["dataset.pairs_per_post=null"] if source == "shp" else []),
    ]  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["dpo.train", *command])
    try:
        train()
    except SystemExit as end:
        assert not end.code, capsys.readouterr().err  # noqa: PT017
    [run] = tmp_path.glob("outputs/run/*")
    data = json.loads((run / "data.json").read_text())
    assert (data["kept"]["dev"], data["refused"]) == (len(held), {})
    given = [_said(source, row)[2] for path in rows.iterdir() for row in real_rows.lines(path)]
    assert data["soft_labels"] == sum(strength < 1 for strength in given) > 5
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    looks = {line["step"]: line["loss"] for line in lines if line["kind"] == "eval"}
    # A log-prob of some thousand nats in fp32 is good to some 1e-4.
    assert looks[0] == pytest.approx(math.log(2), abs=1e-3)
    soft, hard = _losses(run, model, source, held)
    assert looks[3] == pytest.approx(soft, abs=1e-3)
    assert abs(soft - hard) > 4e-3  # the labels show in it, well above that


@pytest.mark.parametrize("name", [name for name in options("dpo") if name != "sigmoid"])
def test_every_other_loss_refuses_them(name: str, compose: Callable[..., Any]) -> None:
    needs = ["dpo.reward=RUN"] if name == "rloo" else []
    with pytest.raises(ConfigError, match="only dpo=sigmoid learns from soft labels"):
        compose(f"dpo={name}", *needs, "dataset=helpsteer3", "dataset.soft_labels=true")


@pytest.mark.parametrize("source", [*SOURCES, "ultrafeedback"])
def test_they_are_off_by_default_and_ties_are_counted(source: str, compose: Callable[..., Any]) -> None:
    from dpo.data.refusal import Reason, Refusal
    from dpo.data.sources import SOURCES as CONVERT

    ties = {
        "shp": {"labels": 1, "score_A": 3, "score_B": 3, "score_ratio": 1.0},
        "webgpt": {"question": {"id": "q", "full_text": "Q"}, "score_0": 0.0, "score_1": 0.0},
        "helpsteer3": {"overall_preference": 0},
        "ultrafeedback": {
            side: [{"role": "user", "content": "Q"}, {"role": "assistant", "content": side}]
            for side in ("chosen", "rejected")
        }
        | {"score_chosen": 4.0, "score_rejected": 4.0},
    }
    config = compose(f"dataset={source}").dataset
    assert not config.soft_labels
    refusal = CONVERT[source](ties[source], "x:train:0", config)
    assert isinstance(refusal, Refusal)
    assert refusal.reason is Reason.tie
