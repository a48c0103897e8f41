"""Where a command names neither judge nor limit, the run's dataset option does."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pytest
from asked import asked
from hostile import change_run

from dpo.config.evaluation import Evaluation
from dpo.config.judges import Judges, ToneJudge
from dpo.evaluation.judges.asked import judges_asked, settings_asked
from dpo.evaluation.measure import measure
from dpo.records.judged import fitting
from dpo.records.read import read_summary

OTHERS = ("hh_rlhf", "shp", "webgpt", "ultrafeedback", "helpsteer3")


def test_every_option_names_judges_and_a_limit(compose) -> None:
    own = compose("dataset=local", "dataset.path=x.jsonl").dataset
    synthetic, others = compose().dataset, [compose(f"dataset={name}").dataset for name in OTHERS]
    assert (synthetic.judges, synthetic.max_new_tokens) == (["rules"], 80)
    for dataset in (own, *others):
        assert dataset.judges == [], dataset.source
        assert dataset.max_new_tokens >= 256, dataset.source


def test_what_is_named_wins(compose) -> None:
    dataset = compose("dataset.judges=[rules,tone]", "dataset.max_new_tokens=33").dataset
    assert [judge for judge, held in vars(judges_asked(Judges(), dataset.judges)).items() if held] == ["rules", "tone"]
    assert judges_asked(Judges(tone=ToneJudge()), dataset.judges) == Judges(tone=ToneJudge())
    assert settings_asked(Evaluation(max_new_tokens=None), dataset).max_new_tokens == 33
    assert settings_asked(Evaluation(max_new_tokens=5), dataset).max_new_tokens == 5


@pytest.mark.parametrize(
    ("dataset", "fit"),
    [
        ({"source": "synthetic", "judges": ["tone"]}, ["rules", "llm"]),
        ({"source": "local", "judges": ["tone"]}, ["llm"]),
        ({"source": "local", "judges": ["rules"]}, ["rules", "llm"]),
        ({"source": "local"}, ["llm"]),
        ({}, ["llm"]),
    ],
)
def test_the_rule_fits_the_rows_it_was_written_for(dataset: dict[str, object], fit: list[str]) -> None:
    assert fitting(["rules", "llm"], {"dataset": dataset}) == fit


def test_an_evaluation_asks_what_its_rows_want(trained: Path, tmp_path: Path, capsys) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    config = (run / "config.yaml").read_text()
    assert "judges:\n  - rules\n" in config
    config = config.replace("judges:\n  - rules\n", "judges:\n  - tone\n")
    config = config.replace("max_new_tokens: 256", "max_new_tokens: 9")
    (run / "config.yaml").write_text(config)
    change_run(run, config_sha256=hashlib.sha256(config.encode()).hexdigest())
    measure(asked(run, "evaluation.max_new_tokens=null", "evaluation.divergence_prompts=0"))
    summary = read_summary(run, "test")
    assert (list(summary["judges"]), list(summary["figures"])) == ([], ["tone"])
    assert summary["settings"]["max_new_tokens"] == 9
    assert "judged by tone; answers of at most 9 tokens" in capsys.readouterr().out
