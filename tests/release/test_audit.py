"""`dpo.audit` on folders exported for real and then damaged, and on what a stranger might send."""

from __future__ import annotations

import json
import pickle
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from dpo.audit import run
from dpo.errors import CheckpointError, ConfigError, Refused
from dpo.modeling.safetensors import read_header
from dpo.release.audit import audit


@pytest.fixture
def folder(tiny_export: Path, tmp_path: Path) -> Path:
    """A copy of an export to damage."""
    return Path(shutil.copytree(tiny_export, tmp_path / "export"))


def failed(folder: Path) -> dict[str, str]:
    """Detail of each failed check by name."""
    return {check.name: check.detail for check in audit(folder) if check.failed}


def test_an_export_and_an_adapter_pass(tiny_export: Path, tiny_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run([str(tiny_export)])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 8
    assert all(line.startswith("ok") for line in lines)
    run([str(tiny_run / "adapter")])
    assert "LoRA of rank" in capsys.readouterr().out


def _edit(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


DAMAGES: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "flipped bit": (lambda f: _flip(f / "model.safetensors"), "certificate", "not the file that was certified"),
    "cut weights": (
        lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-8]),
        "weights",
        "its header describes",
    ),
    "header of lies": (
        lambda f: (f / "model.safetensors").write_bytes(struct.pack("<Q", 2**60) + b"{}"),
        "weights",
        "header claims",
    ),
    "no certificate": (lambda f: (f / "certificate.json").unlink(), "certificate", "nothing says"),
    "more weights": (
        lambda f: shutil.copy(f / "model.safetensors", f / "more.safetensors"),
        "certificate",
        "more.safetensors",
    ),
    "no config": (lambda f: (f / "config.json").write_text("{"), "config", "not JSON"),
    "other vocabulary": (lambda f: _edit(f / "config.json", vocab_size=9), "config", "vocab_size is 9"),
    "fewer layers": (lambda f: _edit(f / "config.json", num_hidden_layers=1), "config", "the weights hold 2"),
    "other width": (lambda f: _edit(f / "config.json", hidden_size=32), "config", "has 64 columns"),
    "other type": (lambda f: _edit(f / "config.json", dtype="float32"), "config", "the weights are BF16"),
    "better figures": (lambda f: _edit(f / "certificate.json", measured=0.0), "certificate", "edited"),
    "a verdict of one's own": (lambda f: _edit(f / "certificate.json", within_bound=False), "certificate", "edited"),
    "no settings": (lambda f: (f / "generation_config.json").unlink(), "files", "generation_config.json"),
    "no tokenizer settings": (lambda f: (f / "tokenizer_config.json").unlink(), "files", "tokenizer_config.json"),
    "no end": (lambda f: _edit(f / "generation_config.json", eos_token_id=None), "generation", "would not end"),
    "no template": (lambda f: (f / "chat_template.jinja").unlink(), "template", "no chat template"),
    "bad template": (lambda f: (f / "chat_template.jinja").write_text("{% for %}"), "template", "not Jinja: line 1"),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "files", "the tokenizer"),
    "no card": (lambda f: (f / "README.md").unlink(), "card", "no README.md"),
    "card without head": (lambda f: (f / "README.md").write_text("# x"), "card", "no YAML block"),
}


# What one damage breaks besides its own check: a missing file is missing too, other weights are not the certified ones.
ALSO = {"weights": {"certificate"}, "template": {"files"}, "card": {"files"}, "certificate": {"files"}}


@pytest.mark.parametrize("damage", DAMAGES)
def test_each_damage_is_named_by_its_check_and_none_is_invented(folder: Path, damage: str) -> None:
    harm, check, said = DAMAGES[damage]
    harm(folder)
    found = failed(folder)
    assert said in found[check]
    assert found.keys() <= {check, *ALSO.get(check, ()), *({"generation"} if damage == "no settings" else ())}
    with pytest.raises(CheckpointError, match="checks failed"):
        run([str(folder)])


UNSAFE: dict[str, Callable[[Path], object]] = {
    "pytorch_model.bin": lambda f: (f / "pytorch_model.bin").write_bytes(pickle.dumps({})),
    "optimizer.pt": lambda f: (f / "deep").mkdir() or (f / "deep" / "optimizer.pt").write_bytes(b"x"),
    "modeling.py": lambda f: (f / "modeling.py").write_text("import os"),
    "auto_map": lambda f: _edit(f / "config.json", auto_map={"AutoModel": "x.Y"}),
    "link": lambda f: (f / "link").symlink_to("/etc/hostname"),
}


@pytest.mark.parametrize("name", UNSAFE)
def test_what_could_run_code_is_named_and_refused(folder: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    UNSAFE[name](folder)
    with pytest.raises(Refused) as caught:
        run([str(folder)])
    assert caught.value.exit_code == 9
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("FAIL  safe files")]
    assert name in line


def test_a_pickle_is_not_opened(folder: Path, tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.touch, (tmp_path / "boom",)

    (folder / "model.pkl").write_bytes(pickle.dumps(Bomb()))
    assert "model.pkl" in failed(folder)["safe files"]
    assert not (tmp_path / "boom").exists()


def test_adapters_are_held_to_their_config(tiny_run: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_run / "adapter", tmp_path / "adapter"))
    assert failed(folder) == {}
    _edit(folder / "adapter_config.json", r=3)
    assert "r is 3" in failed(folder)["config"]


def _drop_layer(file: Path, number: int) -> None:
    from safetensors.torch import load_file, save_file

    save_file({k: v for k, v in load_file(file).items() if f"layers.{number}." not in k}, file)


def test_whole_layers_that_an_adapter_lacks_are_named(tiny_run: Path, tmp_path: Path) -> None:
    def adapter(name: str) -> Path:
        folder = Path(shutil.copytree(tiny_run / "adapter", tmp_path / name))
        # Named by their last part; whole paths name the layers themselves.
        targets = json.loads((folder / "adapter_config.json").read_text())["target_modules"]
        _edit(folder / "adapter_config.json", target_modules=sorted({t.rpartition(".")[2] for t in targets}))
        return folder

    last = adapter("last")
    _drop_layer(last / "adapter_model.safetensors", 1)
    # Its base is here and has two layers.
    assert "no tensor for 7 modules of its base, in layer 1" in failed(last)["config"]
    _edit(last / "adapter_config.json", layers_to_transform=[0])
    assert "config" not in failed(last)
    first = adapter("first")
    _edit(first / "adapter_config.json", base_model_name_or_path="org/far-away")
    assert "config" not in failed(first)
    _drop_layer(first / "adapter_model.safetensors", 0)
    assert "no tensor of layer 0" in failed(first)["config"]
    _edit(first / "adapter_config.json", layers_to_transform=[1])
    assert "config" not in failed(first)


def test_layers_that_repeat_in_a_pattern_are_no_gap() -> None:
    from dpo.release.adapter_layers import missing_layers

    def said(*numbers: int) -> str | None:
        return missing_layers(
            {"target_modules": ["q_proj"]}, [f"base_model.model.layers.{n}.a.q_proj" for n in numbers]
        )

    assert said(0, 1, 2) is None
    assert said(3, 7, 11) is None
    assert said(0, 1, 3) == "no tensor of layer 2"
    assert said(1, 2, 3) == "no tensor of layer 0"


def test_headers_that_overlap_or_leave_gaps_are_refused(tmp_path: Path) -> None:
    def write(*spans: tuple[int, int]) -> Path:
        header = {f"t{i}": {"dtype": "U8", "shape": [b - a], "data_offsets": [a, b]} for i, (a, b) in enumerate(spans)}
        text = json.dumps(header).encode()
        path = tmp_path / "x.safetensors"
        path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(8))
        return path

    assert read_header(write((0, 4), (4, 8)))["t1"].numel == 4
    for spans in (((0, 5), (4, 8)), ((0, 3), (4, 8)), ((0, 4),), ((0, 4), (4, 9))):
        with pytest.raises(ValueError, match=r"byte|describes"):
            read_header(write(*spans))


def test_what_is_no_model_is_said(tmp_path: Path, tiny_run: Path) -> None:
    assert "no model" in failed(tmp_path)["files"]
    assert str(tiny_run / "adapter") in failed(tiny_run)["files"]
    with pytest.raises(ConfigError, match="no such folder"):
        run([str(tmp_path / "nowhere")])


def test_the_command_line_needs_no_torch(tiny_export: Path) -> None:
    script = (
        "import sys; from dpo.audit import run; run(sys.argv[1:]); "
        "print('HEAVY', {'torch', 'transformers'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tiny_export)], capture_output=True, text=True, check=True)
    assert "HEAVY set()" in done.stdout
