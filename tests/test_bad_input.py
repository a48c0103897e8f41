"""Bad input on the command line, in config, model and data: one to three lines, the right exit code, no traceback."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny

CONFIG = {  # words -> (exit code, what the error says)
    "dpo.lr=1": (2, "dpo.lr: unknown key"),
    "dpo.learning_rte=1": (2, "nearest: dpo.learning_rate"),
    "learning_rate=1": (2, "learning_rate: unknown key"),
    "+dataset.lmit=3": (2, "nearest: dataset.limit"),
    "+hardware.enginee=packed": (2, "nearest: hardware.engine"),
    "lora.r=8": (2, "lora.r: unknown key"),
    "dpo.discopop_tau=0.1": (2, "dpo.discopop_tau: unknown key"),
    "dpo=sft dpo.ld_alpha=0.1": (2, "dpo.ld_alpha: unknown key"),
    "dpo=sigmod": (2, "dpo=sigmod: no such option; nearest: sigmoid"),
    "lora=qlra": (2, "nearest: qlora"),
    "model=qwen3_06b": (2, "nearest: qwen3_0_6b"),
    "dataset=hh": (2, "dataset=hh: no such option"),
    "hardware=tpu": (2, "hardware=tpu: no such option"),
    "tracking=mlflow": (2, "tracking=mlflow: no such option"),
    "experiment=zephyr": (2, "nearest: zephyr_qlora"),
    "dpo.beta": (2, "dpo.beta"),
    "dpo.beta=": (2, "dpo.beta"),
    "dpo.beta=[0.1,0.2]": (2, "dpo.beta"),
    "dpo.beta=inf": (2, "must be above 0"),
    "dpo.beta=0": (2, "must be above 0"),
    "dpo.loss=sigmoid": (2, "dpo.loss"),
    "dpo.learning_rate=2": (2, "must be above 0 and below 1"),
    "dpo.learning_rate=fast": (2, "could not be converted to Float"),
    "dpo.max_steps=0": (2, "must be at least 1"),
    "dpo.max_steps=1.5": (2, "could not be converted to Integer"),
    "dpo.epochs=-1": (2, "must be above 0"),
    "dpo.batch_size=0": (2, "must be at least 1"),
    "dpo.batch_size=many": (2, "could not be converted to Integer"),
    "dpo.warmup_ratio=1": (2, "must be at least 0 and below 1"),
    "dpo.weight_decay=-0.1": (2, "must be at least 0"),
    "dpo.scheduler=cosin": (2, "expected one of"),
    "dpo.ld_alpha=2": (2, "must be 0 to 1"),
    "dpo=robust dpo.label_smoothing=0.6": (2, "below 0.5"),
    "dpo=exo_pair dpo.label_smoothing=0": (2, "above 0"),
    "dpo=discopop dpo.discopop_tau=0": (2, "must be above 0"),
    "dpo.f_divergence_type=kl": (2, "expected one of"),
    "dpo=nca_pair dpo.f_divergence_type=js_divergence": (2, "unknown key"),
    "dpo=mpo dpo.loss_weights=[1]": (2, "must be 3 numbers"),
    "dpo=mpo dpo.loss=[sigmoid,hing] dpo.loss_weights=[1,1]": (2, "nearest: hinge"),
    "dpo=hinge dataset.soft_labels=true": (2, "only dpo=sigmoid"),
    "dpo.trainer.beta=0.2": (2, "decided by dpo.beta"),
    "dpo.trainer.ld_alpha=0.2": (2, "decided by dpo.ld_alpha"),
    "dpo.trainer.sync_ref_model=true": (2, "cannot be changed here"),
    "lora.rank=8.5": (2, "could not be converted to Integer"),
    "lora.alpha=0": (2, "must be at least 1"),
    "lora.dropout=-0.1": (2, "must be at least 0"),
    "lora.dora=perhaps": (2, "is not a valid bool"),
    "lora.target_modules=[]": (2, "must be all-linear, a list"),
    "lora.quantization.bits=5": (2, "must be 4 or 8"),
    "lora.quantization.bits=8": (2, "int8 has no double quantization"),
    "lora=int8 lora.quantization.type=nf4": (2, "int8 has no type"),
    "lora=full lora.rank=8": (2, "lora.rank: unknown key"),
    "lora=full model.adapter=x": (2, "continues no adapter"),
    "model.widen_adapter=true": (2, "no model.adapter to widen"),
    "hardware=cpu dpo.optimizer=paged_adamw_8bit": (2, "needs a CUDA GPU"),
    "hardware.attention=flash": (2, "sdpa, eager or flash_attention_2"),
    "hardware.token_budget=0": (2, "must be at least 1"),
    "dataset.max_length=3": (2, "at least 16 tokens"),
    "dataset.on_bad=skip": (2, "expected one of [error, drop]"),
    "dataset.dev_fraction=0.6 dataset=shp dataset.test_fraction=1": (2, "dataset.test_fraction"),
    "seed=-1": (2, "seed=-1"),
    "--cgf job": (2, "--cgf: unknown flag; nearest: --cfg; settings are written key=value"),
    "--beta 0.1": (2, "--beta: unknown flag"),
    "--cfg": (2, "--cfg/-c: expected one argument"),
    "--cfg jobs": (2, "choose from 'job'"),
    "name=a/b": (2, "name=a/b"),
    "model.trust_remote_code=true": (9, "needs a pinned commit"),
    "model.trust_remote_code=true model.revision=v2": (9, "not v2"),
    "tracking.project=wandb_v1_abcdefghijklmnopqrstuvwxyz": (9, "looks like a secret"),
    "+api_key=abc": (9, "looks like a secret"),
    "+token=abc": (9, "looks like a secret"),
    "name=sk-abcdefghijklmnopqrstuv": (9, "looks like a secret"),
}
MODEL = {
    "missing": (2, "no such folder"),
    "file": (2, "is a file"),
    "empty": (2, "no config.json"),
    "no_weights": (2, "no *.safetensors"),
    "pickles": (9, "pickles can run code"),
    "torn": (2, "a torn copy or download"),
    "short": (2, "no safetensors file"),
    "header": (2, "damaged header"),
    "shard": (2, "weight files are missing"),
    "config_text": (2, "cannot be read as JSON"),
    "config_list": (2, "names no model_type"),
    "unknown": (2, "architecture starfish cannot be made"),
    "encoder": (2, "no causal language model"),
    "own_code": (9, "code of its own"),
    "no_tokenizer": (2, "its tokenizer cannot be loaded"),
    "torn_tokenizer": (2, "its tokenizer cannot be loaded"),
    "other_tokenizer": (2, "do not fit together"),
    "adapter": (2, "not a PEFT adapter"),
}
DATA = {
    "missing.jsonl": 3,
    "empty.jsonl": 3,
    "folder": 3,
    "rows.txt": 3,
    "columns.jsonl": 3,
    "latin.jsonl": 3,
    "torn.jsonl.gz": 3,
    "nogzip.jsonl.gz": 3,
    "null.jsonl": 3,
    "list.jsonl": 3,
    "same.jsonl": 3,
    "torn.parquet": 3,
    "half.json": 3,
}


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("good")
    tiny.make_model(root / "model")
    tiny.make_pairs(root / "pairs.jsonl")
    return root


@pytest.fixture
def call(monkeypatch, tmp_path, capsys):
    """Run `python -m dpo.train WORDS` in this process: (exit code, lines of the error, seconds)."""
    from dpo.train import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DPO_OUTPUTS", str(tmp_path / "outputs"))

    def called(*words: str) -> tuple[object, list[str], float]:
        monkeypatch.setattr(sys, "argv", ["dpo.train", *words])
        began = time.perf_counter()
        with pytest.raises(SystemExit) as ended:
            main()
        lines = capsys.readouterr().err.strip().splitlines()
        return ended.value.code, lines, time.perf_counter() - began

    return called


def check(found: tuple[object, list[str], float], code: int, says: str, record_property) -> None:
    got, lines, seconds = found
    record_property("seconds", round(seconds, 2))
    text = "\n".join(lines)
    assert got == code, text
    assert "Traceback" not in text
    assert lines[0].startswith("error: "), text
    assert 1 <= len(lines) <= 3, text
    assert says in text
    assert max(map(len, lines)) < 500


@pytest.mark.parametrize("words", CONFIG)
def test_config_and_command_line(call, record_property, words):
    check(call(*words.split()), *CONFIG[words], record_property)


@pytest.mark.parametrize("fault", MODEL)
def test_model_paths(call, record_property, good, tmp_path, fault):
    words = spoil_model(good, tmp_path / "model", fault)
    found = call(*words, "dataset=local", f"dataset.path={good / 'pairs.jsonl'}", "tracking=none", "hardware=cpu")
    check(found, *MODEL[fault], record_property)


@pytest.mark.parametrize("name", DATA)
def test_dataset_paths(call, record_property, good, tmp_path, name):
    path = spoil_data(tmp_path, name)
    words = ("model=custom", f"model.path={good / 'model'}", "dataset=local", f"dataset.path={path}")
    check(call(*words, "tracking=none", "hardware=cpu"), DATA[name], name.split(".")[0], record_property)


def test_a_handful_as_processes_of_their_own(tmp_path, record_property):
    for words, code in (
        ("dpo.lr=1", 2),
        ("model=custom model.path=./none", 2),
        ("dataset=local dataset.path=no.csv", 3),
    ):
        began = time.perf_counter()
        command = [sys.executable, "-m", "dpo.train", *words.split()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=tmp_path)
        record_property(f"seconds: {words}", round(time.perf_counter() - began, 2))
        assert done.returncode == code, done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
        assert not (tmp_path / "outputs").exists()


def spoil_model(good: Path, folder: Path, fault: str) -> list[str]:
    """A model folder with one fault, and the words that name it."""
    import shutil

    words = ["model=custom", f"model.path={folder}"]
    shutil.copytree(good / "model", folder)
    weights, config = folder / "model.safetensors", folder / "config.json"
    data, settings = weights.read_bytes(), json.loads(config.read_text())
    if fault in ("missing", "file", "empty"):
        shutil.rmtree(folder)
        if fault == "file":
            folder.write_text("x")
        elif fault == "empty":
            folder.mkdir()
    elif fault in ("no_weights", "pickles"):
        weights.unlink()
        if fault == "pickles":
            (folder / "pytorch_model.bin").write_bytes(data)
    elif fault == "torn":
        weights.write_bytes(data[:-100])
    elif fault == "short":
        weights.write_bytes(data[:5])
    elif fault == "header":
        weights.write_bytes(data[:20] + b"\0" * 30 + data[50:])
    elif fault == "shard":
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "gone.safetensors"}}))
    elif fault == "config_text":
        config.write_text("{model_type: llama")
    elif fault == "config_list":
        config.write_text("[]")
    elif fault == "unknown":
        config.write_text(json.dumps(settings | {"model_type": "starfish"}))
    elif fault == "encoder":
        config.write_text(json.dumps({"model_type": "t5", "architectures": ["T5Model"]}))
    elif fault == "own_code":
        config.write_text(json.dumps(settings | {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config"}}))
        (folder / "mine.py").write_text("open('/tmp/owned', 'w')")
    elif fault == "no_tokenizer":
        for path in [*folder.glob("tokenizer*"), *folder.glob("*.jinja")]:
            path.unlink()
    elif fault == "torn_tokenizer":
        path = folder / "tokenizer.json"
        path.write_text(path.read_text()[:200])
    elif fault == "other_tokenizer":
        config.write_text(json.dumps(settings | {"vocab_size": 7}))
    elif fault == "adapter":
        words += [f"model.adapter={folder}"]
    return words


def spoil_data(folder: Path, name: str) -> Path:
    """A dataset path with one fault."""
    path = folder / name
    row = json.dumps({"prompt": "the cat", "chosen": "sat home", "rejected": "ran"}) + "\n"
    content = {
        "empty.jsonl": b"",
        "rows.txt": row.encode(),
        "columns.jsonl": b'{"question": "a", "answer": "b"}\n' * 3,
        "latin.jsonl": row.encode().replace(b"cat", b"c\xe9t"),
        "torn.jsonl.gz": gzip.compress(row.encode() * 50)[:-20],
        "nogzip.jsonl.gz": row.encode(),
        "null.jsonl": b'{"prompt": "a", "chosen": null, "rejected": "b"}\n',
        "list.jsonl": b"[1, 2]\n",
        "same.jsonl": b'{"prompt": "a", "chosen": "b", "rejected": "b"}\n',
        "torn.parquet": b"PAR1 and no more",
        "half.json": b'[{"prompt": "a", ',
    }
    if name == "folder":
        path.mkdir()
    elif name in content:
        path.write_bytes(content[name])
    assert os.path.exists(path) == (name != "missing.jsonl")
    return path


def test_there_are_at_least_sixty() -> None:
    assert len(CONFIG) + len(MODEL) + len(DATA) >= 60
