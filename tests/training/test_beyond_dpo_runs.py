"""Runs of the losses that are no DPOTrainer's: whole, in either engine, killed and continued, and evaluated."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny

SLOW = pytest.mark.slow


def arguments(folder: Path, *more: str, single: bool = False) -> list[str]:
    model = tiny.make_model(folder / "model")
    rows = (tiny.make_singles if single else tiny.make_pairs)(folder / "pairs.jsonl")
    return tiny.arguments(model, rows, *more)


@pytest.mark.parametrize(
    ("loss", "more"),
    [
        ("simpo", "lora=qlora"),
        pytest.param("kto", "lora=lora", marks=SLOW),
        pytest.param("cpo", "lora=lora", marks=SLOW),
        pytest.param("orpo", "lora=qlora", marks=SLOW),
        pytest.param("orpo", "lora=full", marks=SLOW),
        pytest.param("kto", "lora=full", marks=SLOW),
        pytest.param("kto", "hardware.engine=plain", marks=SLOW),
        ("kto", "single"),
        pytest.param("cpo", "hardware.engine=plain", marks=SLOW),
    ],
)
def test_a_killed_run_ends_in_the_same_bits(tmp_path: Path, loss: str, more: str) -> None:
    single = more == "single"
    argv = arguments(tmp_path, f"dpo={loss}", "lora=lora" if single else more, "dpo.max_steps=6", single=single)
    argv += ["dpo.desirable_weight=2.5"] if single else []
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for folder in (whole, cut):
        folder.mkdir()
    code, output = tiny.run("train", argv, whole)
    assert code == 0, output
    _, record = tiny.record(whole)
    ledger = json.loads((tiny.folders(whole)[0] / "ledger.json").read_text())
    if loss == "kto":
        assert "reference identity holds" in output
        assert "reference" in ledger["phases"]
        assert ("by KTO's rule dpo.desirable_weight should be" in output) == single
    else:
        assert f"no reference in {loss}, none computed; its loss before step 1 is" in output
        assert "reference" not in ledger["phases"]
        assert record["start_value"] == pytest.approx(record["start_value_expected"], abs=2e-2)
    assert tiny.run("train", argv, cut, ("step", 5, tiny.KILL))[0] == -tiny.KILL
    code, output = tiny.run("train", argv, cut)
    assert code == 0, output
    assert "continuing at step 3" in output
    assert tiny.outcome(cut) == tiny.outcome(whole)
    card = (tiny.folders(whole)[0] / "adapter" / "README.md").read_text()
    assert f"Optimization ({loss.upper().replace('SIMPO', 'SimPO')})" in card
    assert ("Single answers, wanted or not, of" in card) == single


@SLOW
@pytest.mark.parametrize(
    ("loss", "parallel"),
    [("simpo", "ddp"), ("cpo", "ddp"), ("orpo", "fsdp"), ("kto", "ddp"), ("single", "ddp"), ("single", "fsdp")],
)
def test_two_processes_are_one_and_the_run_is_evaluated(tmp_path: Path, loss: str, parallel: str) -> None:
    single, loss = loss == "single", loss.replace("single", "kto")
    argv = arguments(tmp_path, f"dpo={loss}", "lora=lora", "dpo.max_steps=4", "hardware.precision=fp32", single=single)
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        folder.mkdir()
    code, output = tiny.run("train", argv, one)
    assert code == 0, output
    codes, output = tiny.run_ranks(argv, two, parallel=parallel)
    assert codes == [0, 0], output
    for mine, other in zip(tiny.outcome(two)[1], tiny.outcome(one)[1], strict=True):
        for name in ("loss", "rewards/margins", "kl", "nll_loss"):
            if name in other:
                assert mine[name] == pytest.approx(other[name], rel=1e-3, abs=1e-4), (other["step"], name)
    run = tiny.folders(one)[0]
    few = ["evaluation.prompts=2", "evaluation.max_new_tokens=4", "judge=rules"]
    code, output = tiny.run("evaluate", [str(run), *few], one)
    assert code == 0, output
    code, output = tiny.run("report", [str(run)], one)
    assert code == 0, output
    page = (run / "report.html").read_text()
    assert ("Start value" if loss != "kto" else "Reference identity") in page
