"""Everything a CPU can run trains for real: every option of dpo and every experiment takes steps in a whole run."""

from __future__ import annotations

import json
import math
from itertools import cycle
from pathlib import Path

import pytest
import tiny
from safetensors.torch import load_file

from dpo.config.folder import options
from dpo.config.losses import RLHF, FDivergence, Optimizer, Scheduler
from dpo.errors import ConfigError, NetworkError
from dpo.train import train

STEP = (
    "dataset=local", "tracking=none", "hardware=cpu", "dpo.max_steps=1", "dpo.batch_size=2", "dpo.eval_limit=1",
    "dpo.warmup_ratio=0",
)  # fmt: skip
OTHERS = [kind for kind in FDivergence if kind is not FDivergence.alpha_divergence]
# RLHF's have tests of their own; a reward model's zero head gives the adapter no gradient in the first step.
LOSSES = [name for name in options("dpo") if name not in RLHF]
# Each loss with one of the schedules, then what else the group holds.
CASES = [
    *(f"dpo={name} dpo.scheduler={kind.name}" for name, kind in zip(LOSSES, cycle(Scheduler), strict=False)),
    *(pytest.param(f"dpo.f_divergence_type={kind.name}", marks=pytest.mark.slow) for kind in OTHERS),
    "dpo.f_divergence_type=alpha_divergence dpo.f_alpha_divergence_coef=0.5",
    "dpo.use_weighting=true dpo.ld_alpha=0.5",
    "dpo.weight_decay=0.1 dpo.max_grad_norm=0.01 dpo.warmup_ratio=0.5 dpo.max_steps=2",
    "dpo.epochs=0.5 dpo.max_steps=null dpo.batch_size=3 dpo.log_every=2 dpo.eval_every=1",
    "dataset.soft_labels=true +dpo.trainer.adam_beta2=0.95",
    "hardware.precision=bf16 hardware.attention=eager hardware.activation_checkpointing=on",
    "hardware=auto hardware.memory_gb=2 hardware.hourly_rate=1",
]  # fmt: skip
# Only a CUDA device steps with it.
ELSEWHERE = {Optimizer.paged_adamw_8bit: "needs a CUDA GPU"}


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("files")
    return tiny.make_model(root / "model"), tiny.make_pairs(root / "pairs.jsonl", 20)


def check_trained(run: Path) -> None:
    """The run is complete, its losses are numbers, and every B of the adapter has left 0."""
    assert json.loads((run / "run.json").read_text())["status"] == "complete"
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert any(line["kind"] == "train" for line in lines)
    assert all(math.isfinite(line["loss"]) for line in lines)
    adapter = load_file(run / "adapter" / "adapter_model.safetensors")
    moved = [bool(tensor.any()) for name, tensor in adapter.items() if "lora_B" in name]
    assert moved
    assert all(moved)


@pytest.mark.parametrize("case", CASES)
def test_an_option_trains(compose, files, tmp_path, monkeypatch, case):
    model, pairs = files
    monkeypatch.setenv("DPO_OUTPUTS", str(tmp_path))
    words = [word for word in STEP if word.partition("=")[0] not in {w.partition("=")[0] for w in case.split()}]
    config = compose("model=custom", f"model.path={model}", f"dataset.path={pairs}", *words, *case.split())
    check_trained(train(config))


def test_the_cases_hold_every_schedule_and_optimizer(compose):
    for kind in Scheduler:
        assert any(f"dpo.scheduler={kind.name}" in str(case).split() for case in CASES)
    assert set(Optimizer) - set(ELSEWHERE) == {Optimizer.adamw}
    for optimizer, named in ELSEWHERE.items():
        with pytest.raises(ConfigError, match=named):
            compose("hardware=cpu", f"dpo.optimizer={optimizer.name}")


# A model that is not here is replaced by the tiny one, a hub by files in its schema; what else they say stays.
EXPERIMENTS = {
    "hh_small": "hh_rlhf/harmless_base.jsonl.gz",
    "hh_small_ipo": "hh_rlhf/harmless_base.jsonl.gz",
    "hh_small_mpo": "hh_rlhf/harmless_base.jsonl.gz",
    "llama3_1_8b_hh": "hh_rlhf/helpful_base.jsonl.gz",
    "zephyr_qlora": "ultrafeedback/sample.jsonl.gz",
}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_trains_on_real_rows(compose, files, real_data, tmp_path, monkeypatch, name):
    monkeypatch.setenv("DPO_OUTPUTS", str(tmp_path))
    words = [
        f"experiment={name}",
        "model=custom",
        f"model.path={files[0]}",
        f"dataset.path={real_data / EXPERIMENTS[name]}",
    ]
    words += ["dataset.on_bad=drop", "dataset.limit=60", "dpo.max_steps=2", "dpo.eval_limit=2"]
    words += ["tracking=none", "hardware=cpu"]
    if name == "zephyr_qlora":
        # Rows of UltraFeedback are here in a flatter shape than the hub's.
        words += ["dataset=local", "model.adapter=null", "model.widen_adapter=false", "dpo.batch_size=4"]
    config = compose(*words)
    check_trained(train(config))
    data = json.loads(next(tmp_path.glob(f"{name}/*/data.json")).read_text())
    assert data["source"] == config.dataset.source


def test_every_experiment_has_trained():
    """quickstart is what scripts/quickstart.sh trains; smoke trains below, on the model it names."""
    assert set(options("experiment")) == {*EXPERIMENTS, "quickstart", "smoke"}


def test_without_a_hub_an_experiment_says_what_to_give_it(compose, tmp_path, monkeypatch):
    monkeypatch.setenv("DPO_OUTPUTS", str(tmp_path))
    with pytest.raises(NetworkError, match=r"dataset\.path"):
        train(compose("experiment=hh_small", "tracking=none"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["smoke", "hh_small", "hh_small_ipo", "hh_small_mpo"])
def test_a_small_experiment_trains_the_model_it_names(compose, real_data, tmp_path, monkeypatch, name):
    """The embedded 135M model itself; two steps."""
    monkeypatch.setenv("DPO_OUTPUTS", str(tmp_path))
    words = [f"experiment={name}", "tracking=none", "dpo.max_steps=2", "dpo.eval_limit=2"]
    if name != "smoke":
        words += [f"dataset.path={real_data / EXPERIMENTS[name]}", "dataset.on_bad=drop", "dataset.limit=60"]
    check_trained(train(compose(*words)))
