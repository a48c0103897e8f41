"""A run's recorded facts are compared with what lies on disk wherever the run is read: a mismatch is exit 4."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
from asked import asked
from safetensors.torch import load_file, save_file

from dpo.config.read import read_config
from dpo.errors import CheckpointError
from dpo.evaluation.measure import measure
from dpo.evaluation.sides import load_sides
from dpo.modeling import weights
from dpo.modeling.facts import check_start
from dpo.modeling.tokenizer import load_tokenizer
from dpo.modeling.weights import file_hash
from dpo.records.files import write_sealed
from dpo.records.read import read_run
from dpo.records.run import read_record


@pytest.fixture
def base(run: Path, tmp_path: Path) -> Iterator[Path]:
    """The model and the pairs that `run` was trained on; put back afterwards."""
    root = Path(read_config(run / "config.yaml").model.path).parent
    kept = shutil.copytree(root, tmp_path / "kept", ignore=shutil.ignore_patterns("outputs"))
    yield root
    shutil.copytree(kept, root, dirs_exist_ok=True)


def other_numbers(file: Path) -> None:
    """The same names, shapes, size and modification time, and one number that is another."""
    stat, tensors = file.stat(), load_file(file)
    tensors[min(tensors)].flatten()[0] += 1e-3
    save_file(tensors, file, {"format": "pt"})
    assert file.stat().st_size == stat.st_size
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def forget(run: Path, key: str) -> None:
    record = read_record(run)
    (record["fingerprints"] if key in record["fingerprints"] else record).pop(key)
    write_sealed(run / "run.json", record)


def replace(file: Path, old: str, new: str) -> None:
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))


CHANGES: dict[str, tuple[Callable[[Path, Path], object], str]] = {
    "base weights": (lambda run, base: other_numbers(base / "model" / "model.safetensors"), "its base was"),
    "base config": (lambda run, base: edit(base / "model" / "config.json", rms_norm_eps=1e-3), "its base was"),
    "adapter": (lambda run, base: other_numbers(run / "adapter" / "adapter_model.safetensors"), "adapter_model.safe"),
    "scaling": (lambda run, base: edit(run / "adapter" / "adapter_config.json", lora_alpha=99), "adapter_config.json"),
    "template": (lambda run, base: replace(run / "adapter" / "chat_template.jinja", "\n", " "), "chat_template.jinja"),
    "tokenizer": (lambda run, base: edit(run / "adapter" / "tokenizer_config.json", x=1), "tokenizer_config.json"),
    "more files": (lambda run, base: (run / "adapter" / "added_tokens.json").write_text("{}"), "added_tokens.json"),
    "pairs": (lambda run, base: tiny.make_pairs(base / "pairs.jsonl", 61), "its data was"),
    "quantization": (
        lambda run, base: replace(run / "config.yaml", "double: true", "double: false"),
        "lora.quantization",
    ),
    "beta": (lambda run, base: replace(run / "config.yaml", "  beta: 0.1", "  beta: 0.2"), "dpo.beta"),
    "any other key": (
        lambda run, base: replace(run / "config.yaml", "kwargs: {}", "kwargs: {x: 1}"),
        "config.yaml: dam",
    ),
    **{
        f"no {key} recorded": (lambda run, base, key=key: forget(run, key), f"does not say what its {key} was")
        for key in ("base", "tokenizer", "data", "final", "built")
    },
    "no date recorded": (lambda run, base: forget(run, "date"), "on which date it began"),
}  # type: ignore[misc]


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_not_as_recorded_is_named_and_refused(run: Path, base: Path, change: str) -> None:
    changed, says = CHANGES[change]
    load_sides(run)
    changed(run, base)
    with pytest.raises(CheckpointError, match=says) as caught:
        measure(asked(run))
    assert len(str(caught.value).splitlines()) <= 3
    assert not (run / "evaluation").exists()


def test_evaluate_export_and_chat_end_with_4_on_another_base(run: Path, base: Path, tmp_path: Path) -> None:
    other_numbers(base / "model" / "model.safetensors")
    was = read_record(run)["fingerprints"]["base"]
    for verb in ("evaluate", "export", "chat"):
        code, output = tiny.run(verb, [f"run='{run}'"], tmp_path)
        assert code == 4, output
        assert was in output
        assert weights.fingerprint(base / "model") in output
        assert str(base / "model") in output
        assert "Traceback" not in output


def test_a_copied_starting_adapter_that_was_changed_is_refused(run: Path) -> None:
    from dpo.modeling.adapter import adapter_fingerprint

    start = Path(shutil.copytree(run / "adapter", run / "reference"))
    record = read_record(run)
    record["fingerprints"]["adapter"] = adapter_fingerprint(start)
    write_sealed(run / "run.json", record)
    check_start(run, start)
    edit(start / "adapter_config.json", lora_alpha=99)
    with pytest.raises(CheckpointError, match="its adapter was"):
        check_start(run, start)
    (start / "adapter_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="missing"):
        check_start(run, start)


def test_a_hash_is_remembered_by_what_no_touch_can_set_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, copy = tmp_path / "a", tmp_path / "b"
    file.write_bytes(b"one")
    stat, first = file.stat(), file_hash(file)
    monkeypatch.setattr(weights, "SETTLED_SECONDS", -1.0)
    assert file_hash(file) == first
    # Remembered now: not read again.
    monkeypatch.setattr(weights.hashlib, "file_digest", lambda *_: pytest.fail("read again"))
    assert file_hash(file) == first
    monkeypatch.undo()
    monkeypatch.setattr(weights, "SETTLED_SECONDS", -1.0)
    file.write_bytes(b"two")
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert file_hash(file) != first
    # Another file put in its place, of the same size and time.
    copy.write_bytes(b"one")
    os.utime(copy, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    before = file_hash(file)
    copy.replace(file)
    assert file_hash(file) == first != before


def test_nothing_is_remembered_of_a_file_changed_just_now(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"one")
    first = file_hash(file)
    with file.open("r+b") as open_file:  # perhaps within one tick of the file system's clock
        open_file.write(b"two")
    assert file_hash(file) != first


def test_paths_are_recorded_whole(compose: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m").mkdir()
    (tmp_path / "p.jsonl").touch()
    words = ("model=custom", "model.path=m", "dataset=local", "dataset.path=./p.jsonl", "dataset.test_path=nowhere")
    config = compose(*words)
    assert config.model.path == str(tmp_path / "m")
    assert config.dataset.path == str(tmp_path / "p.jsonl")
    assert config.dataset.test_path == "nowhere"
    assert compose("model=llama3_1_8b").model.path == "meta-llama/Llama-3.1-8B"
    assert compose().model.path.startswith("embedded:")


DATED = "{{ strftime_now('%d %b %Y') }} "


def _later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chat templates believe that it is another day."""
    import datetime

    from transformers.utils import chat_template_utils

    class Later(datetime.datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime.datetime:
            return datetime.datetime(2031, 5, 5)

    monkeypatch.setattr(chat_template_utils, "datetime", Later)


def test_a_run_whose_template_prints_the_date_is_read_on_another_day(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, pairs = tiny.make_model(tmp_path / "model"), tiny.make_pairs(tmp_path / "pairs.jsonl", 40)
    template = model / "chat_template.jinja"
    template.write_text(DATED + template.read_text())
    words = tiny.arguments(model, pairs, "dataset.test_fraction=0.4", "dpo.max_steps=1", "dpo.eval_every=0")
    code, output = tiny.run("train", words, tmp_path)
    assert code == 0, output
    run, record = tiny.record(tmp_path)
    assert json.loads((run / "data.json").read_text())["template"]["date"] == record["date"]
    _later(monkeypatch)
    folder = measure(asked(run))
    assert (folder / "summary.json").is_file()


def test_every_rendering_prints_the_pinned_date(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dpo.data.tokens import Encoder

    model, templates = tiny.make_model(tmp_path / "model"), tmp_path
    template = model / "chat_template.jinja"
    plain = template.read_text()
    template.write_text(DATED + plain)
    _later(monkeypatch)
    turns = [{"role": "user", "content": "the cat"}]

    def load(date: str | None) -> Any:
        return load_tokenizer(model, None, templates, date=date)

    first, other = load("2020-01-01"), load("2020-01-02")
    assert first.apply_chat_template(turns, tokenize=False).startswith("01 Jan 2020 ")
    assert Encoder(first, 64).template.prompt(turns).startswith("01 Jan 2020 ")
    assert Encoder(first, 64).key != Encoder(other, 64).key
    assert "2031" not in load(None).apply_chat_template(turns, tokenize=False)
    # A template without a date has the same tokens on any day.
    template.write_text(plain)
    assert Encoder(load("2020-01-01"), 64).key == Encoder(load("2020-01-02"), 64).key


@pytest.mark.parametrize("name", ["ledger.json", "data.json", "config.yaml"])
@pytest.mark.parametrize("damage", ["another run's", "deleted", "digit"])
def test_a_file_of_a_finished_run_that_is_not_its_own_is_named(
    tiny_run: Path, tmp_path: Path, name: str, damage: str
) -> None:
    run = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    path = run / name
    assert read_run(run).ledger
    if damage == "deleted":
        path.unlink()
    elif damage == "digit":
        path.write_text(re.sub(r"\d", lambda found: str((int(found[0]) + 1) % 10), path.read_text(), count=1))
    elif name == "config.yaml":
        path.write_text(path.read_text().replace("seed: 0", "seed: 1"))
    else:
        write_sealed(path, json.loads(path.read_text()) | {"run": "0123"})
    with pytest.raises(CheckpointError, match=name):
        read_run(run)
