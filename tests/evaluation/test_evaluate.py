"""`dpo.evaluate` on a run trained for real: its figures against brute force, resuming, refusals, the command line."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from asked import asked

from dpo.config.parse import plain
from dpo.errors import CheckpointError, ConfigError
from dpo.evaluation.folder import EvaluationFolder
from dpo.evaluation.measure import held_out, measure
from dpo.evaluation.sides import load_sides
from dpo.records.files import write_sealed
from dpo.records.read import json_file, json_lines
from dpo.records.run import read_record


@pytest.fixture(scope="module")
def evaluated(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The evaluation folder of a copy of the run."""
    import shutil

    copy = Path(shutil.copytree(trained, tmp_path_factory.mktemp("evaluated") / "run"))
    return measure(asked(copy))


def _log_prob(model: torch.nn.Module, prompt: list[int], completion: list[int]) -> float:
    with torch.no_grad():
        logits = model(torch.tensor([prompt + completion])).logits[0].double()
    rows = torch.log_softmax(logits[len(prompt) - 1 : -1], -1)
    return float(rows.gather(1, torch.tensor(completion).unsqueeze(1)).sum())


def test_pair_rows_and_figures_match_brute_force(trained: Path, evaluated: Path) -> None:
    from dpo.config.read import read_config

    config = read_config(trained / "config.yaml")
    sides = load_sides(trained)
    pairs, tokens = held_out(sides.config, sides.tokenizer, asked(trained).evaluation.split, None, trained)
    rows = {row["id"]: row for row in json_lines(evaluated / "pairs.jsonl")}
    assert list(rows) == [pair.id for pair in tokens]
    right, base_right, margins = [], [], []
    for pair, text in zip(tokens, pairs, strict=True):
        row = rows[pair.id]
        assert row["group"] == text.group
        for side in ("policy", "reference"):
            with sides.use("policy" if side == "policy" else "baseline") as model:
                for name, ids in (("chosen", pair.chosen_ids), ("rejected", pair.rejected_ids)):
                    assert row[f"{side}_{name}"] == pytest.approx(_log_prob(model, pair.prompt_ids, ids), abs=2e-4)
        chosen = row["policy_chosen"] - row["reference_chosen"]
        rejected = row["policy_rejected"] - row["reference_rejected"]
        right.append(chosen > rejected)
        base_right.append(row["reference_chosen"] > row["reference_rejected"])
        margins.append(config.dpo.beta * (chosen - rejected))
    found = json_file(evaluated / "summary.json")["pairs"]
    assert found["accuracy"]["value"] == pytest.approx(sum(right) / len(right))
    assert found["likelier_before"]["value"] == pytest.approx(sum(base_right) / len(right))
    assert found["margin"]["value"] == pytest.approx(sum(margins) / len(margins))
    assert found["loss"]["value"] == pytest.approx(sum(math.log1p(math.exp(-m)) for m in margins) / len(margins))
    assert found["accuracy"]["low"] <= found["accuracy"]["value"] <= found["accuracy"]["high"]
    assert found["margin"]["value"] > 0


def test_divergence_matches_brute_force(trained: Path, evaluated: Path) -> None:
    sides = load_sides(trained)
    _, tokens = held_out(sides.config, sides.tokenizer, asked(trained).evaluation.split, None, trained)
    prompts = {pair.id: pair.prompt_ids for pair in tokens}
    answers = {
        r["prompt"]: r for r in json_lines(evaluated / "answers.jsonl") if (r["side"], r["sample"]) == ("policy", 0)
    }
    rows = json_lines(evaluated / "divergence.jsonl")
    assert rows
    for row in rows:
        answer = answers[row["prompt"]]
        ids = answer["ids"] + ([sides.tokenizer.eos_token_id] if answer["finished"] else [])
        assert row["tokens"] == len(ids)
        sequence = torch.tensor([prompts[row["prompt"]] + ids])
        logs = []
        for side in ("policy", "baseline"):
            with sides.use(side) as model, torch.no_grad():
                logs.append(torch.log_softmax(model(sequence).logits[0, -len(ids) - 1 : -1].double(), -1))
        exact = float((logs[0].exp() * (logs[0] - logs[1])).sum())
        assert row["kl"] == pytest.approx(exact, abs=1e-4)
        assert row["kl"] > 0


def test_the_two_sides_differ_only_by_the_adapter(trained: Path) -> None:
    sides = load_sides(trained)
    ids = torch.tensor([[4, 8, 9, 10]])
    with torch.no_grad():
        with sides.use("policy") as model:
            policy = model(ids).logits
        with sides.use("baseline") as model:
            baseline = model(ids).logits
        with sides.use("policy") as model:
            assert torch.equal(model(ids).logits, policy)
    assert not torch.allclose(policy, baseline, atol=1e-4)


def _numbers(node: Any) -> list[float]:
    if isinstance(node, dict):
        return [x for key in sorted(node) for x in _numbers(node[key])]
    if isinstance(node, list):
        return [x for part in node for x in _numbers(part)]
    return [float(node)] if isinstance(node, (int, float)) else []


def test_an_interrupted_evaluation_continues_to_the_same_result(run: Path) -> None:
    whole = measure(asked(run))
    before = {p.name: p.read_bytes() for p in whole.iterdir() if p.suffix == ".jsonl"}
    summary = json_file(whole / "summary.json")
    answers = before["answers.jsonl"]
    # A kill in the middle of the baseline's answers, inside a line, with some pairs and no verdicts.
    (whole / "answers.jsonl").write_bytes(answers[: int(len(answers) * 0.7)])
    (whole / "pairs.jsonl").write_bytes(b"".join(before["pairs.jsonl"].splitlines(keepends=True)[:5]))
    for name in ("verdicts.jsonl", "divergence.jsonl", "samples.jsonl", "summary.json"):
        (whole / name).unlink()
    measure(asked(run))
    for name in ("samples.jsonl", "divergence.jsonl", "verdicts.jsonl"):
        assert (whole / name).read_bytes() == before[name], name
    again = json_file(whole / "summary.json")
    for key in ("pairs", "answers", "judges", "divergence"):
        assert _numbers(again[key]) == pytest.approx(_numbers(summary[key]), abs=1e-5)


def test_repeating_a_finished_evaluation_draws_nothing_new(run: Path) -> None:
    folder = measure(asked(run))
    stamps = {p.name: p.stat().st_mtime_ns for p in folder.iterdir() if p.name in ("answers.jsonl", "pairs.jsonl")}
    measure(asked(run))
    assert stamps == {p.name: p.stat().st_mtime_ns for p in folder.iterdir() if p.name in stamps}


def test_other_settings_under_the_same_name_are_refused_and_named(run: Path) -> None:
    folder = measure(asked(run))
    with pytest.raises(ConfigError, match=r"another temperature[\s\S]*evaluation\.name=NEW"):
        measure(asked(run, "evaluation.temperature=0.5"))
    assert measure(asked(run, "evaluation.temperature=0", "evaluation.again=true")) == folder
    assert json_file(folder / "summary.json")["settings"]["temperature"] == 0
    other = measure(asked(run, "evaluation.name=warm"))
    assert other != folder
    assert (other / "summary.json").is_file()


def test_presentation_may_change_without_drawing_again(run: Path) -> None:
    measure(asked(run))
    folder = measure(asked(run, "evaluation.resamples=300", "evaluation.batch_size=2"))
    assert json_file(folder / "summary.json")["settings"]["resamples"] == 300


def test_samples_hold_both_sides_and_their_verdicts(evaluated: Path) -> None:
    samples = json_lines(evaluated / "samples.jsonl")
    assert len(samples) == 12  # 6 prompts, two samples each
    for sample in samples:
        assert sample["messages"][-1]["role"] == "user"
        for side in ("policy", "baseline"):
            assert isinstance(sample[side]["answer"], str)
            assert isinstance(sample[side]["finished"], bool)
            assert set(sample[side]["verdicts"]) == {"rules"}
    summary = json_file(evaluated / "summary.json")
    truncated = sum(not s["policy"]["finished"] for s in samples)
    assert summary["answers"]["policy"]["truncated"] == truncated
    assert summary["answers"]["policy"]["finished"] == 12 - truncated


def test_own_prompts_and_several_samples_a_prompt(run: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('the cat sat\n{"prompt": "red dog", "subject": "dog"}\n')
    folder = measure(asked(run, f"evaluation.prompts_file='{prompts}'", "evaluation.samples_per_prompt=3"))
    samples = json_lines(folder / "samples.jsonl")
    wanted = [(subject, sample) for subject in (None, "dog") for sample in range(3)]
    assert [(s["subject"], s["sample"]) for s in samples] == wanted
    assert json_file(folder / "summary.json")["judges"]["rules"]["difference"]["n"] == 2


def test_a_run_without_final_weights_or_held_out_pairs_is_refused(run: Path) -> None:
    record = read_record(run)
    record["fingerprints"]["data"] = "something else"
    write_sealed(run / "run.json", record)
    with pytest.raises(CheckpointError, match="its data was something else"):
        measure(asked(run))
    (run / "adapter" / "adapter_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="no final adapter"):
        measure(asked(run))


def test_rows_of_another_adapter_are_not_mixed_in(run: Path) -> None:
    folder = EvaluationFolder.open(run, asked(run).evaluation, {"weights": "a"})
    assert folder.rows("answers") == []
    with pytest.raises(ConfigError, match="facts"):
        EvaluationFolder.open(run, asked(run).evaluation, {"weights": "b"})


def test_a_setting_that_came_later_had_its_default(run: Path) -> None:
    folder = EvaluationFolder.open(run, asked(run).evaluation, {}).path
    kept = json_file(folder / "settings.json")
    del kept["top_k"]
    (folder / "settings.json").write_text(json.dumps(kept))
    EvaluationFolder.open(run, asked(run).evaluation, {})
    with pytest.raises(ConfigError, match="another top_k"):
        EvaluationFolder.open(run, asked(run, "evaluation.top_k=3").evaluation, {})


def test_settings_are_kept_whole(run: Path) -> None:
    config = asked(run).evaluation
    EvaluationFolder.open(run, config, {})
    kept = json_file(run / "evaluation" / "test" / "settings.json")
    assert kept["seed"] == plain(config)["seed"]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["run=/nowhere/at/all"], 2, "run=/nowhere/at/all: no such run"),
        (["run=x", "evaluation.temprature=1"], 2, "evaluation.temperature"),
        (["run=x", "evaluation.samples_per_prompt=0"], 2, "must be 1 to 1000"),
        (["run=x", "judge=[rulez]"], 2, "rules"),
        ([], 2, "no run named, and no complete one under outputs"),
        (["--help"], 0, "python -m dpo.evaluate"),
    ],
)
def test_the_command_line_answers_without_torch(arguments: list[str], code: int, said: str, tmp_path: Path) -> None:
    script = (
        "import sys, atexit; from dpo.evaluate import main; "
        "atexit.register(lambda: print('HEAVY', 'torch' in sys.modules or 'transformers' in sys.modules)); "
        f"sys.argv[1:] = {arguments!r}; main()"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, check=False)
    output = done.stdout + done.stderr
    assert done.returncode == code, output
    assert said in output
    assert "HEAVY False" in output
    assert "Traceback" not in output
    assert code == 0 or len(done.stderr.splitlines()) <= 3
