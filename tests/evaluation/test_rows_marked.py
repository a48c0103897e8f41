"""Rows that figures come from are those their summary was made from, or the reader says so."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dpo.errors import CheckpointError
from dpo.evaluation.folder import EvaluationFolder
from dpo.records.files import write_json
from dpo.records.read import read_pairs, read_rows, read_samples


def test_a_digit_flipped_in_finished_rows_is_found(tmp_path: Path) -> None:
    folder = EvaluationFolder(tmp_path / "evaluation" / "test")
    folder.path.mkdir(parents=True)
    for stage in ("pairs", "samples", "divergence"):
        folder.append(stage, [{"id": n, "value": n / 8} for n in range(4)])
    write_json(folder.path / "summary.json", {"rows": folder.marks()})
    folder.check()
    for stage in ("pairs", "samples", "divergence"):
        path = folder.path / f"{stage}.jsonl"
        whole = path.read_bytes()
        for damaged in (whole.replace(b"0.25", b"0.35"), whole[:-9], b"", b"\0" * len(whole)):
            path.write_bytes(damaged)
            with pytest.raises(CheckpointError, match=rf"{stage}\.jsonl: not as it was written"):
                read_rows(tmp_path, "test", stage)
            with pytest.raises(CheckpointError, match=r"evaluation\.again=true"):
                folder.check()
        path.write_bytes(whole)
    assert len(read_pairs(tmp_path, "test")) == len(read_samples(tmp_path, "test")) == 4
    # Rows about to change are not vouched for: a kill between them and the summary leaves nothing that looks damaged.
    folder.rewrite("samples", [{"id": 9}])
    assert read_samples(tmp_path, "test") == [{"id": 9}]


def test_damaged_settings_of_an_unfinished_evaluation_are_a_line_with_the_way_out(
    tmp_path: Path, compose_verb: Callable[..., Any]
) -> None:
    from dpo.config.evaluation import Evaluate, register

    register()
    config = compose_verb("evaluate", Evaluate, "run=x").evaluation
    folder = EvaluationFolder.open(tmp_path, config, {"weights": "0123"})
    EvaluationFolder.open(tmp_path, config, {"weights": "0123"})
    settings = folder.path / "settings.json"
    for text in (settings.read_text().replace("0123", "0124"), "{", "[]"):
        settings.write_text(text)
        with pytest.raises(CheckpointError, match=r"settings\.json: .*\nevaluation\.again=true"):
            EvaluationFolder.open(tmp_path, config, {"weights": "0123"})


@pytest.mark.parametrize("stage", ["pairs", "answers"])
def test_damaged_rows_of_an_unfinished_evaluation_are_found(tmp_path: Path, stage: str) -> None:
    folder = EvaluationFolder(tmp_path)
    for number in range(3):
        folder.append(stage, [{"id": number, "value": number / 8}, {"id": -number}])
    path = tmp_path / f"{stage}.jsonl"
    whole = path.read_bytes()
    for damaged in (whole.replace(b'"id": 1', b'"id": 7'), b"{]" + whole[2:], whole[whole.find(b"\n") + 1 :]):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=rf"{stage}\.jsonl: not as it was written.*\nevaluation\.again=true"):
            EvaluationFolder(tmp_path).rows(stage)
    path.write_bytes(whole + b'{"id": 3, "va')
    assert len(EvaluationFolder(tmp_path).rows(stage)) == 6
    assert path.read_bytes() == whole
