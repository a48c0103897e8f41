"""Rows that figures come from are those their summary was made from, or the reader says so."""

from __future__ import annotations

from pathlib import Path

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
