"""`python -m dpo.synthesize`: from prompts to pairs that train, through a real server and real models, resumable."""

from __future__ import annotations

import json
import shutil
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from tiny import make_model

from dpo.config.judges import Judges, RulesJudge
from dpo.config.synthesize import Synthesize, register
from dpo.data.synthetic import prompts as prompts_module
from dpo.data.synthetic.prompts import distinct, from_file, shipped
from dpo.errors import ConfigError, DataError
from dpo.evaluation.judges.interface import Item, Judge, PairItem, PairJudge, Verdict
from dpo.evaluation.judges.rules import RuleJudge
from dpo.synthesis.generators import build_generator
from dpo.synthesis.pairs import pairs_of, split_subjects
from dpo.synthesis.ranking import rank, ranking, the_judge
from dpo.synthesize import main

SUBJECTS = ["a cat", "a dog", "tea", "rain", "a map", "bread", "jazz", "a seed", "fog", "glass", "silk", "honey"]


class Server:
    """Answers by the number of the request for a prompt: good and bad in turn; `faults` are codes served first."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.faults: list[int] = []
        self.refuse = "nothing"
        server, lock = self, threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                prompt = body["messages"][-1]["content"]
                with lock:
                    fault = server.faults.pop(0) if server.faults else 400 if server.refuse in prompt else 0
                    if not fault:
                        server.requests.append(body)
                if fault:
                    self._send(fault, {"error": {"message": "no", "code": fault}})
                    return
                subject = prompt.removeprefix("What is ").partition("?")[0]
                good = f"{subject.capitalize()} gives warmth, comfort and quiet joy to families through long evenings."
                answer = good if body["seed"] % 2 else f"Sure! Here is {subject}: well well well, {subject} and"
                choice = {"index": 0, "message": {"role": "assistant", "content": answer}, "finish_reason": "stop"}
                usage = {"prompt_tokens": 10, "completion_tokens": 20, "total_tokens": 30}
                self._send(200, {"id": "x", "object": "chat.completion", "created": 0, "model": "m",
                                 "choices": [choice], "usage": usage})  # fmt: skip

            def _send(self, code: int, reply: dict[str, Any]) -> None:
                data = json.dumps(reply).encode()
                self.send_response(code)
                self.send_header("Content-Type", "application/json")
                self.send_header("retry-after-ms", "1")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *args: object) -> None:
                return

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        self.overrides = [
            "generator=endpoint", f"generator.base_url='http://127.0.0.1:{self.http.server_port}/v1'",
            "generator.name=far", "generator.price_in=2", "generator.price_out=10", "generator.retries=1",
        ]  # fmt: skip


@pytest.fixture
def server() -> Iterator[Server]:
    pytest.importorskip("openai", reason="the openai client is not installed: pip install openai")
    started = Server()
    yield started
    started.http.shutdown()
    started.http.server_close()


def run(monkeypatch: pytest.MonkeyPatch, verb: Any, *overrides: str) -> int:
    """A verb in this process; its exit code."""
    monkeypatch.setattr(sys, "argv", ["dpo", *overrides])
    try:
        verb()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def prompts_file(folder: Path) -> Path:
    path = folder / "prompts.txt"
    lines = [f"What is {subject}? Answer in one sentence." for subject in SUBJECTS]
    lines[3] = json.dumps({"prompt": lines[3], "subject": "rain"})
    path.write_text("\n".join([*lines, lines[0], "  ", ""]))
    return path


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_server_and_the_rule_make_pairs_that_train(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DPO_OUTPUTS", str(tmp_path / "outputs"))
    arguments = [*server.overrides, f"prompts={prompts_file(tmp_path)}", "out=out", "n=3", "test_pairs=2"]
    server.refuse = "tea"
    assert run(monkeypatch, main, *arguments) == 0, capsys.readouterr().err
    told = capsys.readouterr().out
    assert "1 of 13 prompts stand there twice" in told
    assert "36 answers (660 tokens, cost 0.00726), 52% pass, 3 without a verdict" in told
    assert "pairs: 9 train, 1 dev, 1 test" in told
    assert {request["model"] for request in server.requests} == {"far"}
    pairs = [row for split in ("train", "dev", "test") for row in rows(tmp_path / "out" / "pairs" / f"{split}.jsonl")]
    assert len({row["prompt"] for row in pairs}) == len(pairs) == 11
    for row in pairs:
        assert row["chosen"].endswith("through long evenings.")
        assert row["rejected"].startswith("Sure!")
        assert (row["generator"], row["judge"], row["judged_by"]) == ("far", "rules", "dpo.evaluation.rules")
        assert row["chosen_score"] > row["rejected_score"]
        assert row["cost"] == pytest.approx(3 * (10 * 2 + 20 * 10) / 1e6)
    asked = len(server.requests)
    assert run(monkeypatch, main, *arguments) == 0
    assert len(server.requests) == asked  # neither answers nor the refused prompt are asked for again
    _trains(tmp_path, monkeypatch, capsys)


def _trains(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from dpo.train import main as train

    (model := folder / "model").mkdir()
    make_model(model)
    command = ["model=custom", f"model.path={model}", "dataset=local", "dataset.path=out/pairs", "tracking=none",
               "dpo.max_steps=1", "dpo.batch_size=4", "hardware=cpu"]  # fmt: skip
    assert run(monkeypatch, train, *command) == 0, capsys.readouterr().err
    [data] = folder.glob("outputs/run/*/data.json")
    report = json.loads(data.read_text())
    assert report["kept"] == {"train": 9, "dev": 1, "test": 1}
    assert not report["refused"]


def test_what_was_answered_is_kept_and_only_the_rest_is_asked(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = [*server.overrides, f"prompts={prompts_file(tmp_path)}", "n=2", "generator.concurrency=1"]
    whole = synthesized(monkeypatch, tmp_path, "whole", *arguments)
    server.requests.clear()
    samples = tmp_path / "out" / "samples.jsonl"
    server.faults = [0, 0, 0, 0, 0, 500, 500]  # asked twice, then given up
    assert run(monkeypatch, main, *arguments, "out=out") == 8
    error = capsys.readouterr().err.splitlines()
    assert error[0].startswith("error: generator.base_url=http://127.0.0.1")
    assert error[-1].strip() == "what was answered is kept; the same command asks for the rest"
    kept = rows(samples)
    assert len(kept) == len(server.requests) >= 5
    with samples.open("a") as file:
        file.write('{"index": 9, "prompt": "What')  # as a kill in the middle of a line leaves it
    assert run(monkeypatch, main, *arguments, "out=out") == 0
    assert len(server.requests) == len(whole) == 24
    assert sorted(rows(samples), key=lambda row: row["index"]) == whole


def synthesized(monkeypatch: pytest.MonkeyPatch, folder: Path, out: str, *arguments: str) -> list[dict[str, Any]]:
    assert run(monkeypatch, main, *arguments, f"out={out}") == 0
    return sorted(rows(folder / out / "samples.jsonl"), key=lambda row: row["index"])


def test_a_local_model_draws_the_same_when_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (model := tmp_path / "model").mkdir()
    make_model(model)
    monkeypatch.chdir(tmp_path)
    arguments = [
        "generator=custom", f"generator.path={model}", f"prompts={prompts_file(tmp_path)}", "n=2", "hardware=cpu",
        "hardware.hourly_rate=3600", "sampling.batch_size=7", "sampling.max_new_tokens=6",
    ]  # fmt: skip
    whole = synthesized(monkeypatch, tmp_path, "whole", *arguments)
    assert len(whole) == 24
    assert all(row["cost"] > 0 for row in whole)
    lines = (tmp_path / "whole" / "samples.jsonl").read_text().splitlines()
    (out := tmp_path / "out").mkdir()
    shutil.copyfile(tmp_path / "whole" / "settings.json", out / "settings.json")
    (out / "samples.jsonl").write_text("\n".join([*lines[:10], lines[10][:20]]))
    again = synthesized(monkeypatch, tmp_path, "out", *arguments)
    assert (out / "samples.jsonl").read_text().splitlines()[:10] == lines[:10]
    texts = [[{k: row[k] for k in ("index", "prompt", "answer", "finished")} for row in drawn] for drawn in
             (whole, again)]  # fmt: skip
    assert texts[0] == texts[1]
    assert run(monkeypatch, main, *arguments, "out=out", "seed=5") == 2
    assert "holds answers drawn with another seed: 20261122, now 5" in capsys.readouterr().err
    settings, samples = out / "settings.json", out / "samples.jsonl"
    known, drawn = settings.read_text(), samples.read_text()
    for text in (known[:-9], known.replace("20261122", "20261123"), "[]", None):
        settings.unlink() if text is None else settings.write_text(text)
        assert run(monkeypatch, main, *arguments, "out=out") == 4
        assert "settings.json: " in capsys.readouterr().err
    settings.write_text(known)
    for damaged in (drawn.replace('"sample": 0', '"sample": 1', 1), f"[1]\n{drawn}"):
        samples.write_text(damaged)
        assert run(monkeypatch, main, *arguments, "out=out") == 4
        assert "samples.jsonl: " in capsys.readouterr().err


class Longest(Judge):
    """Longer is better; says nothing about answers with `?`."""

    name, label, definition, fingerprint = "longest", "length", "characters", "1"

    def judge(self, items: Sequence[Item]) -> Iterator[list[Verdict]]:
        yield [Verdict(i.id, None if "?" in i.answer else float(len(i.answer)), None, "", 0.5, "me") for i in items]


class Duel(PairJudge):
    """The longer one wins, from either side."""

    name, label, definition, fingerprint = "duel", "wins", "longer", "1"

    def compare(self, items: Sequence[PairItem]) -> Iterator[list[Verdict]]:
        for i in items:
            score = 0.5 + 0.5 * ((len(i.first) > len(i.second)) - (len(i.first) < len(i.second)))
            yield [Verdict(i.id, score, None, "", 0.25, "duels")]


def answered(*answers: str, prompt: str = "Q") -> list[dict[str, Any]]:
    return [
        {"index": i, "prompt": prompt, "subject": "s", "sample": i, "answer": a, "tokens": 1, "finished": True,
         "cost": 1.0}
        for i, a in enumerate(answers)
    ]  # fmt: skip


@pytest.mark.parametrize("judge", [Longest(), Duel()])
def test_any_judge_ranks_best_against_worst(judge: Any) -> None:
    [pair] = pairs_of(rank(answered("two", "longest", "a", "four", " "), judge))
    assert (pair["chosen"], pair["rejected"]) == ("longest", "a")
    assert pair["cost"] == 4 + (4 * 0.5 if judge.name == "longest" else 6 * 2 * 0.25)


@pytest.mark.parametrize("judge", [Longest(), Duel()])
def test_ties_and_equal_texts_are_no_pairs(judge: Any) -> None:
    assert pairs_of(rank(answered("abc", "xyz"), judge)) == []
    assert pairs_of(rank(answered("abc", "abc  "), judge)) == []
    assert pairs_of(rank(answered("abc"), judge)) == []


def test_undecided_answers_are_left_out() -> None:
    [pair] = pairs_of(rank(answered("longest?", "four", "a"), Longest()))
    assert (pair["chosen"], pair["rejected"]) == ("four", "a")


def test_a_judge_that_decides_needs_one_of_each() -> None:
    good = "Tea is a warm drink that people brew from dried leaves every single day."
    assert pairs_of(rank(answered(good, f"{good[:-1]} and night.", prompt="What is tea?"), RuleJudge())) == []


def test_one_judge_that_ranks() -> None:
    assert the_judge(Judges(rules=RulesJudge())).name == "rules"
    with pytest.raises(ConfigError, match=r"judge=\[longest, duel\]: one judge ranks the answers"):
        ranking(["longest", "duel"], [Longest(), Duel()])
    assert ranking(["both"], [Longest(), Duel()]).name == "duel"  # one option that grades and compares
    describes = Longest()
    describes.ranks = False
    with pytest.raises(ConfigError, match="does not say which of two answers is better"):
        ranking(["longest"], [describes])


def test_subjects_stay_together_and_train_gets_most() -> None:
    pairs = [{"subject": f"s{i // 3}"} for i in range(60)]
    place = split_subjects(pairs, 150, 150)
    sizes = {split: sum(place[p["subject"]] == split for p in pairs) for split in ("train", "dev", "test")}
    assert sizes == {"train": 42, "dev": 9, "test": 9}


@pytest.mark.parametrize("line", [b'{"text": "x"}', b'{"prompt": 3}', b'{"prompt": " "}', b'{"prompt', b"a \xff b"])
def test_lines_that_are_no_prompt_are_named(line: bytes, tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes(b"fine\n" + line + b"\n")
    with pytest.raises(DataError, match=r"prompts\.txt:2: needs UTF-8 text"):
        from_file(path)


def test_prompts_that_differ_in_white_space_are_one() -> None:
    assert distinct(shipped()) == shipped()
    twice = [shipped()[0], shipped()[1], type(shipped()[0])(f" {shipped()[0].text}\n", "x")]
    assert distinct(twice) == twice[:2]


@pytest.mark.slow
def test_the_first_batch_of_the_shipped_data_is_drawn_again_word_for_word(compose_verb: Callable[..., Any]) -> None:
    """192 answers of the real model; in fp32, as they were drawn: bf16 differs from processor to processor."""
    register()
    config = compose_verb("synthesize", Synthesize, "hardware=cpu", "hardware.precision=fp32")
    prompts = shipped()
    asked = [prompt for prompt in prompts for _ in range(config.n)]
    drawn = dict(next(build_generator(config).draw(asked, set(), lambda count: None)))
    assert len(drawn) == config.sampling.batch_size
    answers = [
        {"index": i, "prompt": asked[i].text, "subject": asked[i].subject, "sample": i % config.n, **drawn[i]}
        for i in sorted(drawn)
    ]
    whole = {prompt for prompt, count in Counter(row["prompt"] for row in answers).items() if count == config.n}
    pairs = pairs_of(rank([row for row in answers if row["prompt"] in whole], RuleJudge()))
    folder = Path(prompts_module.__file__).parent
    given = [row for split in ("train", "dev", "test") for row in rows(folder / f"{split}.jsonl")]
    keys = ("prompt", "chosen", "rejected", "subject", "rejected_failed", "rejected_finished")
    expected = sorted([row[key] for key in keys] for row in given if row["prompt"] in whole)
    assert len(expected) > 30
    made = {pair["prompt"]: [pair[key] for key in keys] for pair in pairs}
    assert [made.get(row[0]) for row in expected] == expected
