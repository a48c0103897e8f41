"""`judge=[llm]` with a model loaded here: structured replies by likelihood, checked by brute force."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from dpo.config.judges import JudgeModel
from dpo.data.pair import Message
from dpo.evaluation.judges.chat_local import LocalChat
from dpo.evaluation.judges.rubric import FACETS, Question, compare_question, grade_question, read_grades

PROMPT = (Message("user", "the cat sat"),)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_model(tmp_path_factory.mktemp("judge") / "model")


def _chat(folder: Path, temperature: float = 0.0) -> LocalChat:
    return LocalChat(JudgeModel(str(folder), "main", None, None, 2), temperature, 12)


def _replies(chat: LocalChat, questions: list[Question]) -> list[dict[str, Any]]:
    found = dict(chat.ask(questions))
    return [json.loads(str(found[i].text)) for i in range(len(questions))]


def test_values_are_the_likeliest_of_those_allowed(folder: Path) -> None:
    chat = _chat(folder)
    question = grade_question(PROMPT, "red dog ran", False, 0)
    (reply,) = _replies(chat, [question])
    model, _, encoder = chat._load()
    ids, before = encoder.encode_prompt(question.messages), "{"
    for number, name in enumerate(FACETS):
        ids = ids + encoder.codec.encode(f'{before}"{name}":')
        end, scores = "}" if number == 3 else ",", {}
        for value in range(1, 11):
            text = encoder.codec.encode(f" {value}{end}")
            with torch.no_grad():
                steps = model(torch.tensor([ids + text])).logits[0].float().log_softmax(-1)
            scores[value] = sum(float(steps[len(ids) - 1 + k, token]) for k, token in enumerate(text))
        best = max(scores.values())
        assert scores[reply[name]] == pytest.approx(best, abs=2e-3 if model.dtype == torch.float32 else 0.2)
        ids, before = ids + encoder.codec.encode(f" {reply[name]}{end}"), " "


@pytest.mark.parametrize("explain", [False, True])
def test_every_reply_is_a_verdict_and_the_same_in_any_batch(folder: Path, explain: bool) -> None:
    questions = [grade_question(PROMPT, " ".join(tiny.WORDS[:n]), explain, 0) for n in range(1, 6)]
    questions += [compare_question(PROMPT, "red", "blue", explain, 0)]
    together = _replies(_chat(folder), questions)
    for reply in together[:-1]:
        assert set(read_grades(json.dumps(reply))[0]) == set(FACETS)
        assert ("reason" in reply) is explain
    assert together[-1]["preferred"] in ("A", "B", "tie")
    assert [_replies(_chat(folder), [question])[0] for question in questions] == together


def test_with_a_temperature_values_are_drawn_by_the_seed(folder: Path) -> None:
    chat = _chat(folder, 3.0)
    questions = [compare_question(PROMPT, "red", "blue", False, seed) for seed in range(40)]
    first = [reply["preferred"] for reply in _replies(chat, questions)]
    assert len(Counter(first)) > 1
    assert [reply["preferred"] for reply in _replies(chat, questions)] == first


def test_what_does_not_fit_the_model_is_told_and_never_cut(folder: Path) -> None:
    ((_, reply),) = list(_chat(folder).ask([grade_question(PROMPT, "red " * 5000, False, 0)]))
    assert reply.text is None
    assert reply.final
    assert "the model takes 2048" in reply.refusal
