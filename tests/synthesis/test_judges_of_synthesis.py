"""`python -m dpo.synthesize` with each kind of judge, for real: a loopback server, a reward model, people's ratings."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny

from dpo.synthesize import main
from dpo.train import main as train

SUBJECTS = ["cat", "dog", "mat", "hill", "bird", "home", "blue slow", "red fast"]


def run(monkeypatch: pytest.MonkeyPatch, verb: Any, *overrides: str) -> int:
    monkeypatch.setattr(sys, "argv", ["dpo", *overrides])
    try:
        verb()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DPO_OUTPUTS", str(tmp_path / "outputs"))
    monkeypatch.setenv("DPO_CACHE", str(tmp_path / "cache"))
    (tmp_path / "model").mkdir()
    tiny.make_model(tmp_path / "model")
    (tmp_path / "prompts.txt").write_text("".join(f"the {subject} sat\n" for subject in SUBJECTS))
    return tmp_path


def arguments(folder: Path, *judge: str) -> list[str]:
    return [
        "generator=custom", f"generator.path={folder / 'model'}", f"prompts={folder / 'prompts.txt'}", "n=3",
        "hardware=cpu", "sampling.max_new_tokens=12", "sampling.batch_size=24", "out=out", "dev_pairs=1",
        "test_pairs=0", *judge,
    ]  # fmt: skip


def pairs(folder: Path) -> list[dict[str, Any]]:
    lines = [line for path in sorted((folder / "out" / "pairs").glob("*.jsonl")) for line in path.open()]
    return [json.loads(line) for line in lines]


def answers(folder: Path) -> dict[str, list[str]]:
    """The distinct answers by prompt, in the order they were drawn."""
    found: dict[str, list[str]] = {}
    for row in sorted(map(json.loads, (folder / "out" / "samples.jsonl").open()), key=lambda row: row["index"]):
        if row["answer"].strip():
            found.setdefault(row["prompt"], []).append(row["answer"].strip())
    return found


def trains(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["model=custom", f"model.path={folder / 'model'}", "dataset=local", "dataset.path=out/pairs",
               "tracking=none", "dpo.max_steps=1", "dpo.batch_size=2", "hardware=cpu"]  # fmt: skip
    assert run(monkeypatch, train, *command) == 0, capsys.readouterr().err
    [data] = folder.glob("outputs/run/*/data.json")
    report = json.loads(data.read_text())
    assert sum(report["kept"].values()) == len(pairs(folder))
    assert not report["refused"]
    [adapter] = folder.glob("outputs/run/*/adapter")
    assert list(adapter.glob("*.safetensors"))


@pytest.fixture
def server() -> Iterator[Any]:
    pytest.importorskip("openai", reason="the openai client is not installed: pip install 'dpo-train[endpoint]'")
    from judge_server import JudgeServer

    started = JudgeServer()
    yield started
    started.close()


def test_a_language_model_ranks_by_all_duels(
    server: Any, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    judge = ["judge=[llm]", f"judge.llm.server.base_url='{server.url}'", "judge.llm.server.model=m",
             "judge.llm.server.price_in=1", "judge.llm.server.price_out=10"]  # fmt: skip
    assert run(monkeypatch, main, *arguments(folder, *judge)) == 0, capsys.readouterr().err
    made = pairs(folder)
    assert len(made) >= 4
    drawn = answers(folder)
    for pair in made:  # the loopback judge prefers more words: the longest beat the others, the shortest lost to them
        words = {len(answer.split()) for answer in drawn[pair["prompt"]]}
        assert (len(pair["chosen"].split()), len(pair["rejected"].split())) == (max(words), min(words))
        assert pair["judge"] == "llm"
        assert pair["chosen_score"] > pair["rejected_score"]
        assert pair["cost"] > 0
    duels = sum(len({a, b}) == 2 for row in drawn.values() for i, a in enumerate(row) for b in row[:i])
    asked = server.tries
    assert asked <= 2 * duels  # both orders; equal duels are asked once
    assert run(monkeypatch, main, *arguments(folder, *judge)) == 0
    assert server.tries == asked  # neither answers nor verdicts are asked for again
    assert pairs(folder) == made
    trains(folder, monkeypatch, capsys)


def test_a_reward_model_ranks(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, LlamaConfig
    from transformers import LlamaForSequenceClassification as Classifier

    (reward := folder / "reward").mkdir()
    tiny.make_model(reward)
    config = LlamaConfig.from_pretrained(reward)
    config.num_labels, config.pad_token_id = 1, 0
    torch.manual_seed(1)
    Classifier(config).float().save_pretrained(reward)
    judge = ["judge=[reward_model]", f"judge.reward_model.path={reward}"]
    assert run(monkeypatch, main, *arguments(folder, *judge)) == 0, capsys.readouterr().err
    made = pairs(folder)
    assert len(made) == len(SUBJECTS)
    tokenizer = AutoTokenizer.from_pretrained(reward)
    model: Any = AutoModelForSequenceClassification.from_pretrained(reward, dtype=torch.float32).eval()

    def score(prompt: str, answer: str) -> float:
        talk = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
        ids = tokenizer.apply_chat_template(talk, return_dict=True)["input_ids"]
        with torch.no_grad():
            return float(model(input_ids=torch.tensor([ids])).logits[0, 0])

    for pair in made:
        scores = [score(pair["prompt"], answer) for answer in answers(folder)[pair["prompt"]]]
        # The verb may score in bfloat16, where the processor has it.
        assert score(pair["prompt"], pair["chosen"]) == pytest.approx(max(scores), abs=0.02)
        assert score(pair["prompt"], pair["rejected"]) == pytest.approx(min(scores), abs=0.02)
        assert pair["judge"] == "reward_model"
    trains(folder, monkeypatch, capsys)


def test_people_rank_once_their_sheet_is_back(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from dpo.evaluation.judges.human.sheet import answer_digest, read_sheets

    judge = ["judge=[human]", "judge.human.folder=people"]
    assert run(monkeypatch, main, *arguments(folder, *judge)) == 0, capsys.readouterr().err
    told = capsys.readouterr()
    assert "pairs to rate: give raters" in told.err
    assert "24 without a verdict" in told.out
    assert pairs(folder) == []
    # The rater prefers the answer whose text sorts first.
    from dpo.data.pair import Message

    drawn = answers(folder)
    texts = {
        answer_digest((Message("user", prompt),), row["answer"]): row["answer"]
        for prompt in drawn
        for row in map(json.loads, (folder / "out" / "samples.jsonl").open())
        if row["prompt"] == prompt
    }
    [sheet] = read_sheets(folder / "people")
    ratings = [{"row": r.row, "preference": "1" if texts[r.left] < texts[r.right] else "2"} for r in sheet.rows]
    random.Random(0).shuffle(ratings)
    sent = {"sheet": sheet.name, "rater": "ann", "ratings": ratings}
    (sheet.ratings / "ann.json").write_text(json.dumps(sent))
    assert run(monkeypatch, main, *arguments(folder, *judge)) == 0, capsys.readouterr().err
    made = pairs(folder)
    assert len(made) == len(SUBJECTS)
    for pair in made:
        assert (pair["chosen"], pair["rejected"]) == (min(drawn[pair["prompt"]]), max(drawn[pair["prompt"]]))
        assert pair["judge"] == "human"
    trains(folder, monkeypatch, capsys)
