"""Every way to hold and train the weights: real steps with both engines, and a run cut short ends as if it had not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny

from dpo.config.folder import options
from dpo.train import train

STEPS = (
    "dataset=local", "tracking=none", "hardware=cpu", "hardware.precision=fp32", "dpo.max_steps=3", "dpo.batch_size=2",
    "dpo.save_every=1", "dpo.eval_limit=2", "dpo.learning_rate=1e-2", "lora.rank=4",
)  # fmt: skip
WAYS = [
    *[f"lora={name}" for name in options("lora")],
    "lora=lora lora.dropout=0.3",
    "lora=qlora lora.dropout=0.3",
    "lora=lora lora.rslora=true",
    "lora=qlora lora.dora=true",
    "lora=lora lora.dora=true",
    "lora=lora lora.alpha=3",
    "lora=lora lora.target_modules=[q_proj,v_proj]",
]
# Run with TRL's own forward by default as well; the others are TRL and PEFT as they come.
BOTH = ("lora=qlora", "lora=full", "lora=lora lora.dropout=0.3")


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("files")
    return tiny.make_model(root / "model"), tiny.make_pairs(root / "pairs.jsonl", 20)


class Cut(Exception):
    """What ends a run in the middle here."""


@pytest.fixture(scope="module")
def ended() -> dict[str, dict[str, bytes]]:
    """engine -> way -> final weights, to see that no way is another under a different name."""
    return {"packed": {}, "plain": {}}


@pytest.mark.parametrize(
    ("way", "engine"),
    [
        pytest.param(way, engine, marks=[pytest.mark.slow] if engine == "plain" and way not in BOTH else [])
        for engine in ("packed", "plain")
        for way in WAYS
    ],
)
def test_it_trains_and_a_cut_run_ends_in_the_same_weights(
    compose, files, tmp_path, monkeypatch, capsys, ended, way, engine
):
    from dpo.training.trainer import Trainer

    model, pairs = files
    words = [*STEPS, *way.split(), f"hardware.engine={engine}"]
    if way == "lora=full":
        words.remove("lora.rank=4")
    config = compose("model=custom", f"model.path={model}", f"dataset.path={pairs}", *words)
    monkeypatch.setenv("DPO_OUTPUTS", str(tmp_path / "whole"))
    folder = train(config)
    whole = ended[engine][way] = weights(folder)
    losses = [row["loss"] for row in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())]
    assert len(set(losses)) > 1
    check_footprint(json.loads((folder / "run.json").read_text())["footprint"], capsys.readouterr().out, way)
    if engine == "plain":
        return
    # Cut in step 3, after the checkpoint of step 2, and continued.
    monkeypatch.setenv("DPO_OUTPUTS", str(tmp_path / "cut"))
    original, calls = Trainer._forward_backward, 0

    def cut(self, *args):
        nonlocal calls
        calls += 1
        if calls == 3:
            raise Cut
        return original(self, *args)

    monkeypatch.setattr(Trainer, "_forward_backward", cut)
    with pytest.raises(Cut):
        train(config)
    monkeypatch.setattr(Trainer, "_forward_backward", original)
    assert weights(train(config)) == whole


def check_footprint(found: dict[str, float], output: str, way: str) -> None:
    """What the optimizer really holds is what was forecast, and the line says what run.json does."""
    assert found["measured"]
    forecast = 8 * found["trainable"] / 2**20
    # AdamW also counts its steps, one fp32 number a tensor.
    assert forecast < found["optimizer_mb"] < 1.05 * forecast
    assert f"base {found['base_mb']:.0f} MB of {found['base_16bit_mb']:.0f} MB in 16 bits" in output
    assert f"full fine-tuning {found['full_state_mb']:.0f} MB" in output
    if way == "lora=full":
        assert found["trainable"] == found["total"]
        assert found["state_mb"] == pytest.approx(found["full_state_mb"], rel=0.01)
    else:
        assert found["state_mb"] < 0.6 * found["full_state_mb"]


def test_each_way_ends_in_weights_of_its_own(ended):
    for ways in ended.values():
        assert len(set(ways.values())) == len(ways)


def weights(run: Path) -> bytes:
    (file,) = (run / "adapter").glob("*.safetensors")
    return file.read_bytes()
