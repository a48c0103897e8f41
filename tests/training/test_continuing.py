"""A run goes on with other hardware and cadences, and not with metrics or a machine that are not what they were."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import pytest
import tiny

from dpo.errors import CheckpointError
from dpo.records.files import write_sealed
from dpo.records.ledger import Ledger
from dpo.records.read import read_run
from dpo.records.rows import Running
from dpo.records.run import Facts, Run, read_record


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("inputs")
    return tiny.make_model(folder / "model"), tiny.make_pairs(folder / "pairs.jsonl")


@pytest.fixture(scope="module")
def stopped(inputs: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Working folder of a run that was killed in step 8, with checkpoints at 3 and 6 and an evaluation at 4."""
    cwd = tmp_path_factory.mktemp("stopped")
    code, output = tiny.run("train", tiny.arguments(*inputs, "lora=lora"), cwd, ("step", 8, tiny.KILL))
    assert code == -signal.SIGKILL, output
    return cwd


def again(stopped: Path, cwd: Path) -> Path:
    """A copy of it; returns the run's folder."""
    shutil.copytree(stopped / "outputs", cwd / "outputs")
    return tiny.record(cwd)[0]


def test_out_of_memory_advice_goes_on_at_the_last_checkpoint(inputs, stopped, tmp_path):
    run = again(stopped, tmp_path)
    (run / ".ledger.json.999999999.tmp").write_text("torn")
    more = ["hardware.activation_checkpointing=on", "hardware.token_budget=64", "dpo.log_every=2", "dpo.save_every=7"]
    code, output = tiny.run("train", tiny.arguments(*inputs, "lora=lora", *more), tmp_path)
    assert code == 0, output
    assert "continuing at step 6" in output
    assert "hardware.activation_checkpointing=on (was auto)" in output
    assert "dpo.log_every=2 (was 1)" in output
    assert "64 tokens a micro-batch" in output
    run, record = tiny.record(tmp_path)
    assert record["token_budget"] == 64
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["kind"] == "train"] == [1, 2, 3, 4, 5, 6, 8]
    assert {path.name for path in (run / "checkpoints").iterdir()} >= {"step-7", "step-8"}
    assert not list(run.glob(".*.tmp"))


@pytest.mark.parametrize("damage", ["flipped", "gone"])
def test_metrics_that_are_not_what_was_logged_are_refused(inputs, stopped, tmp_path, damage):
    run = again(stopped, tmp_path)
    path, before = run / "metrics.jsonl", (run / "config.yaml").read_text()
    text = path.read_text()
    path.write_text(text.replace('"step": 2', '"step": 3')) if damage == "flipped" else path.unlink()
    code, output = tiny.run("train", tiny.arguments(*inputs, "lora=lora", "dpo.log_every=2"), tmp_path)
    assert code == 4, output
    assert f"{path.relative_to(tmp_path)}: " in output
    assert "resume=never" in output
    assert "Traceback" not in output
    # The refused attempt leaves what describes the earlier one.
    assert (run / "config.yaml").read_text() == before
    assert read_record(run)["fingerprints"]["processes"] == "1"


WRITTEN = Facts("a: 1\n", "f", 0)


def begun(root: Path) -> tuple[Run, dict]:
    """A run with metrics up to a checkpoint at 6; its mark."""
    run = Run.begin(root, "run", WRITTEN)
    run.continue_at(-1, Running().mark(), False, print)
    for step in range(1, 7):
        run.log("train", step, {"loss": 0.5 / step})
    assert run.metrics is not None
    return run, run.metrics.mark()


def go_on(run: Run, mark: dict, anyway: bool = False) -> tuple[Run, list[str]]:
    again, said = Run.go_on(run.folder, run.owner, WRITTEN), []
    again.continue_at(6, mark, anyway, said.append)
    return again, said


def test_lines_behind_a_checkpoint_stay_only_where_the_record_vouches_for_them(tmp_path):
    run, mark = begun(tmp_path)
    path = run.folder / "metrics.jsonl"
    logged = path.read_bytes()
    run.log("eval", 6, {"loss": 0.375})
    run.save()
    evaluated = path.read_bytes()
    run.log("train", 7, {"loss": 0.2})
    with path.open("a") as file:
        file.write('{"step": 8, "ki')  # torn by a kill
    go_on(run, mark)
    assert path.read_bytes() == evaluated
    # Not vouched for: dropped, so that it is measured again.
    path.write_bytes(evaluated.replace(b"0.375", b"0.376"))
    go_on(run, mark)
    assert path.read_bytes() == logged


@pytest.mark.parametrize("damage", ["flipped", "truncated", "emptied", "deleted", "zeroed", "another run's"])
def test_every_damage_to_logged_lines_is_refused_and_may_be_accepted(tmp_path, damage):
    run, mark = begun(tmp_path)
    path = run.folder / "metrics.jsonl"
    data = path.read_bytes()
    damages = {
        "flipped": data.replace(b"0.25", b"0.35"),
        "truncated": data[: len(data) // 2],
        "emptied": b"",
        "zeroed": b"\0" * len(data),
        "another run's": data.replace(b'"time": 1', b'"time": 2'),
    }
    path.unlink() if damage == "deleted" else path.write_bytes(damages[damage])
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl: .*\n.*resume=never"):
        go_on(run, mark)
    run, said = go_on(run, mark, anyway=True)
    assert "is not as it was logged" in said[0]
    # From here on the marks fit what is there.
    run.log("train", 7, {"loss": 0.1})
    assert run.metrics is not None
    go_on(run, run.metrics.mark())


def test_metrics_of_a_finished_run_are_what_it_logged(tmp_path):
    run, _ = begun(tmp_path)
    for name in ("ledger.json", "data.json"):
        write_sealed(run.folder / name, {"run": run.record["id"]})
    run.finish("complete", None, 0)
    assert len(read_run(run.folder).train) == 6
    path = run.folder / "metrics.jsonl"
    path.write_bytes(path.read_bytes().replace(b"0.25", b"0.35"))
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl: not as it was written"):
        read_run(run.folder)


def test_damaged_records_are_lines_not_tracebacks(tmp_path, capsys):
    run, _ = begun(tmp_path)
    path = run.folder / "run.json"
    whole = json.loads(path.read_text())
    bad = ["", "{", "[]", "null", "[" * 99999, '{"status": 3}', json.dumps(whole | {"attempts": [3]}),
           json.dumps(whole | {"fingerprints": []}), json.dumps(whole | {"step": "x"})]  # fmt: skip
    for text in bad:
        path.write_text(text)
        with pytest.raises(CheckpointError, match=r"run\.json"):
            read_record(run.folder)
    write_sealed(path, whole)
    for text in ["", "{", "[]", '{"phases": 3}', '{"phases": {"load": {}}}', '{"phases": {"load": {"seconds": "x"}}}']:
        (run.folder / "ledger.json").write_text(text.replace('{"phases"', f'{{"run": "{whole["id"]}", "phases"', 1))
        assert Ledger(run.folder, 0.0).phases == {}
        assert "ledger.json: not readable" in capsys.readouterr().out


@pytest.mark.slow
def test_a_run_of_two_ranks_is_not_continued_by_one_unless_told_to(inputs, tmp_path):
    argv = tiny.arguments(*inputs, "lora=lora", "dpo.log_every=3")
    codes, output = tiny.run_ranks(argv, tmp_path, dict.fromkeys((0, 1), ("step", 5, tiny.TERM)))
    assert codes == [143, 143], output
    code, output = tiny.run("train", argv, tmp_path)
    assert code == 4, output
    assert "processes was 2, now 1" in output
    assert tiny.record(tmp_path)[1]["processes"] == 2
    code, output = tiny.run("train", [*argv, "resume_anyway=true"], tmp_path)
    assert code == 0, output
    _, lines = tiny.outcome(tmp_path)
    assert [line["step"] for line in lines if line["kind"] == "train"] == [3, 6, 8]
