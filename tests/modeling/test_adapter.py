"""model.adapter continues an adapter: it is the start and the reference, through kills, resumes and evaluations."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import tiny
from safetensors.torch import load_file, save_file

from dpo.config.lora import Lora
from dpo.data.pair import TokenPair
from dpo.errors import ConfigError, Refused
from dpo.modeling.adapter import adapter_fingerprint, check_agrees, keep_copy, resolve_adapter

RUN = (
    "lora=lora",
    "dpo.max_steps=4",
    "dpo.eval_every=0",
    "dpo.eval_limit=4",
    "dpo.save_every=2",
    "hardware.precision=fp32",
)


@pytest.fixture(scope="module")
def first(tmp_path_factory) -> tuple[Path, Path, Path]:
    """(model, pairs, adapter): a first run that has moved."""
    root = tmp_path_factory.mktemp("first")
    model, pairs = tiny.make_model(root / "model"), tiny.make_pairs(root / "pairs.jsonl")
    code, output = tiny.run("train", tiny.arguments(model, pairs, *RUN), root)
    assert code == 0, output
    return model, pairs, tiny.record(root)[0] / "adapter"


def go_on(first: tuple[Path, Path, Path], cwd: Path, *more: str, **kwargs) -> tuple[int, str]:
    model, pairs, adapter = first
    return tiny.run("train", tiny.arguments(model, pairs, *RUN, f"model.adapter={adapter}", *more), cwd, **kwargs)


@pytest.mark.parametrize("engine", ["packed", "plain"])
def test_the_start_and_the_reference_are_the_adapter_and_a_killed_run_ends_the_same(first, tmp_path, engine):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    code, output = go_on(first, whole, f"hardware.engine={engine}")
    assert code == 0, output
    assert "reference identity holds" in output
    folder, record = tiny.record(whole)
    weights, lines = tiny.outcome(whole)
    # At the start every log-ratio is 0 although the policy is not the base: the loss is log 2.
    assert lines[0]["loss"] == pytest.approx(0.693147, abs=1e-5)
    assert weights != (first[2] / "adapter_model.safetensors").read_bytes()
    assert (folder / "reference" / "adapter_model.safetensors").read_bytes() == (
        first[2] / "adapter_model.safetensors"
    ).read_bytes()
    assert record["fingerprints"]["adapter"] == resolve_adapter(str(first[2]), "main").fingerprint
    [parent] = record["parents"]
    assert (parent["what"], parent["folder"]) == ("adapter", str(first[2].parent.resolve()))
    assert parent["cost"]["flops"] > 0
    # Killed after a checkpoint, the reference is still the starting adapter, not the checkpoint.
    code, _ = go_on(first, killed, f"hardware.engine={engine}", at=("step", 4, tiny.KILL))
    assert code == -tiny.KILL
    code, output = go_on(first, killed, f"hardware.engine={engine}")
    assert code == 0, output
    assert "continuing at step 2" in output
    assert tiny.outcome(killed) == (weights, lines)


def test_both_sides_of_an_evaluation_are_rebuilt(first, tmp_path):
    """The baseline is the starting adapter, read from the run directory alone."""
    from dpo.engine.log_probs import sequence_log_probs
    from dpo.evaluation.sides import BASELINE, POLICY, load_sides
    from dpo.modeling.policy import load_trained

    model, pairs, adapter = first
    mine = tmp_path / "adapter"
    shutil.copytree(adapter, mine)
    code, output = go_on((model, pairs, mine), tmp_path)
    assert code == 0, output
    shutil.rmtree(mine)
    sides = load_sides(tiny.record(tmp_path)[0])
    start, _, _ = load_trained(adapter.parent)
    some = [TokenPair("a", [1, 3, 9, 2], [8, 7, 2], [10, 2]), TokenPair("b", [1, 12], [9], [6, 11, 13])]
    with sides.use(BASELINE) as side:
        before = sequence_log_probs(side, some, 100)
    with sides.use(POLICY) as side:
        after = sequence_log_probs(side, some, 100)
    expected = sequence_log_probs(start, some, 100)
    assert before == [pytest.approx(row, rel=1e-5) for row in expected]
    assert after != [pytest.approx(row, rel=1e-3) for row in expected]


WRONG = {
    "lora.rank=4": "contradicts lora.rank=4; the adapter is lora.rank=8",
    "lora.alpha=3": "the adapter is lora.alpha=16",
    "lora.rslora=true": "the adapter is lora.rslora=false",
    "lora.target_modules=[q_proj]": "the adapter is lora.target_modules=[down_proj,gate_proj,",
    "lora=full": "full fine-tuning continues no adapter",
}


@pytest.mark.parametrize("override", WRONG)
def test_lora_keys_that_contradict_the_adapter_are_refused(compose, first, override):
    with pytest.raises(ConfigError) as caught:  # noqa: PT012 - by parse, or by the comparison behind it
        config = compose("lora=lora", f"model.adapter={first[2]}", override)
        check_agrees(resolve_adapter(config.model.adapter, "main"), config.lora)
    assert WRONG[override] in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_another_dropout_is_no_contradiction(compose, first):
    config = compose("lora=lora", "lora.dropout=0.1")
    check_agrees(resolve_adapter(str(first[2]), "main"), config.lora)


def test_an_adapter_that_is_none_or_unsafe_is_refused(first, tmp_path):
    def altered(name: str, **changes) -> str:
        folder = tmp_path / name
        shutil.copytree(first[2], folder)
        settings = json.loads((folder / "adapter_config.json").read_text()) | changes
        (folder / "adapter_config.json").write_text(json.dumps(settings))
        return str(folder)

    lora = Lora(quantization=None, rank=8, alpha=16, dropout=0, target_modules="all-linear", rslora=False, dora=False)
    for name, changes, says in (
        ("type", {"peft_type": "IA3"}, "its type is IA3"),
        ("saved", {"modules_to_save": ["lm_head"]}, "it sets modules_to_save"),
        ("bias", {"bias": "all"}, "it sets bias"),
        ("pissa", {"init_lora_weights": "pissa_niter_4"}, "it began as pissa_niter_4, which changes the base"),
        ("olora", {"init_lora_weights": "OLoRA"}, "it began as OLoRA"),
        ("new", {"some_new_way": {"rank": 3}}, "it sets some_new_way"),
    ):
        with pytest.raises(ConfigError, match=says):
            check_agrees(resolve_adapter(altered(name, **changes), "main"), lora)
    with pytest.raises(ConfigError, match="no such folder"):
        resolve_adapter(str(tmp_path / "none"), "main")
    with pytest.raises(ConfigError, match=r"no adapter_config\.json .*; try"):
        resolve_adapter(str(first[2].parent), "main")
    torn = Path(altered("torn"))
    weights = torn / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(ConfigError, match="a torn copy or download"):
        resolve_adapter(str(torn), "main")
    weights.rename(torn / "adapter_model.bin")
    with pytest.raises(Refused, match="pickles can run code"):
        resolve_adapter(str(torn), "main")


def test_an_adapter_of_other_modules_or_another_base_is_one_error(first, tmp_path):
    model, pairs, _ = first
    narrow = tmp_path / "narrow"
    narrow.mkdir()
    code, output = tiny.run(
        "train", tiny.arguments(model, pairs, *RUN, "lora.target_modules=[q_proj,v_proj]", "dpo.max_steps=1"), narrow
    )
    assert code == 0, output
    code, output = go_on((model, pairs, tiny.record(narrow)[0] / "adapter"), tmp_path)
    assert code == 2, output
    assert "it lacks" in output
    assert "its target_modules=[q_proj,v_proj]" in output
    assert "Traceback" not in output


def test_a_widened_adapter_is_the_same_function_at_the_start(first, tmp_path):
    metrics = {}
    for name, more in {
        "same": (),
        "wide": ("model.widen_adapter=true", "lora.rank=12", "lora.alpha=5"),
        "root": ("model.widen_adapter=true", "lora.rank=8", "lora.alpha=16", "lora.rslora=true"),
    }.items():
        (tmp_path / name).mkdir()
        code, output = go_on(first, tmp_path / name, "dpo.max_steps=2", *more)
        assert code == 0, output
        metrics[name] = tiny.outcome(tmp_path / name)[1]
    for name in ("wide", "root"):
        for key in ("logps/chosen", "logps/rejected"):
            assert metrics[name][0][key] == pytest.approx(metrics["same"][0][key], rel=1e-5)
        assert metrics[name][-1]["loss"] != metrics["same"][-1]["loss"]
    code, output = go_on(first, tmp_path, "model.widen_adapter=true", "lora.rank=4")
    assert code == 2
    assert "contradicts lora.rank=4; the adapter is lora.rank=8" in output


def test_a_refused_resume_with_another_adapter_leaves_the_copy_of_the_first(first, tmp_path):
    code, output = go_on(first, tmp_path, at=("step", 4, tiny.KILL))
    assert code < 0, output
    run, before = tiny.record(tmp_path)
    kept = {path.name: path.read_bytes() for path in (run / "reference").iterdir()}
    model, pairs, adapter = first
    other = shutil.copytree(adapter, tmp_path / "other")
    tensors = load_file(other / "adapter_model.safetensors")
    save_file({name: 2 * tensor for name, tensor in tensors.items()}, other / "adapter_model.safetensors")
    words = tiny.arguments(model, pairs, *RUN, f"model.adapter={other}", f"resume={run}")
    code, output = tiny.run("train", words, tmp_path)
    assert code == 4, output
    assert "adapter was" in output
    assert {path.name: path.read_bytes() for path in (run / "reference").iterdir()} == kept
    assert tiny.record(tmp_path)[1]["fingerprints"] == before["fingerprints"]
    # At the user's word it is the start from now on, and so it is what the run keeps.
    code, output = tiny.run("train", [*words, "resume_anyway=true"], tmp_path)
    assert code == 0, output
    assert adapter_fingerprint(run / "reference") == adapter_fingerprint(other)
    assert tiny.record(tmp_path)[1]["fingerprints"]["adapter"] == adapter_fingerprint(other)


def test_a_damaged_copy_of_the_starting_adapter_is_made_again(first, tmp_path):
    start = resolve_adapter(str(first[2]), "main")
    keep_copy(start, tmp_path / "reference")
    (tmp_path / "reference" / "adapter_config.json").write_text("{}")
    keep_copy(start, tmp_path / "reference")
    assert adapter_fingerprint(tmp_path / "reference") == start.fingerprint
    with pytest.raises(ConfigError, match="was changed while it was read"):
        keep_copy(dataclasses.replace(start, fingerprint="0" * 16), tmp_path / "reference")


def test_a_runs_adapter_is_not_continued_on_another_base_or_once_it_was_changed(first, tmp_path):
    model, pairs, adapter = first
    other = shutil.copytree(model, tmp_path / "other")
    tensors = load_file(other / "model.safetensors")
    save_file({name: 1.01 * t for name, t in tensors.items()}, other / "model.safetensors", {"format": "pt"})
    code, output = go_on((other, pairs, adapter), tmp_path)
    assert code == 4, output
    assert "its base was" in output
    # Nor once it has left its run, whose facts lie beside it.
    away = shutil.copytree(adapter, tmp_path / "away")
    code, output = go_on((other, pairs, away), tmp_path)
    assert code == 4, output
    assert "it was trained on the base" in output
    run = shutil.copytree(adapter.parent, tmp_path / "run")
    (run / "adapter" / "tokenizer_config.json").write_text("{}")
    code, output = go_on((model, pairs, run / "adapter"), tmp_path)
    assert code == 4, output
    assert "tokenizer_config.json: was" in output
