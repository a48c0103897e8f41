"""`python -m dpo.plan` on this machine: a card that is not here, in a process of its own."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch

from dpo.config.folder import conf_folder
from dpo.config.schema import Config
from dpo.planning.measure import model_config, shapes

MILLIONS = {
    "embedded:smollm2-135m-instruct": 135,
    "google/gemma-3-1b-it": 1000,
    "HuggingFaceTB/SmolLM2-1.7B-Instruct": 1711,
    "HuggingFaceTB/SmolLM2-360M-Instruct": 362,
    "Qwen/Qwen3-0.6B": 596,
    "Qwen/Qwen3-8B": 8191,
    "meta-llama/Llama-3.1-8B": 8030,
    "meta-llama/Llama-3.1-8B-Instruct": 8030,
    "mistralai/Mistral-7B-v0.1": 7242,
}
"""As their publishers count."""


def run(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "dpo.plan", "dataset=hh_rlhf", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_each_shipped_shape_has_as_many_parameters_as_the_model() -> None:
    from transformers import AutoModelForCausalLM

    found = {}
    for file in shapes().glob("*.json"):
        path = file.stem.replace("embedded--", "embedded:").replace("--", "/")
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(model_config(path))
        found[path] = round(sum(parameter.numel() for parameter in model.parameters()) / 1e6)
    assert found == MILLIONS


def test_each_model_option_has_a_shape() -> None:
    text = "".join(path.read_text(encoding="utf-8") for path in (conf_folder() / "model").glob("*.yaml"))
    assert sorted(re.findall(r"^path: (\S+[/:]\S+)$", text, re.M)) == sorted(MILLIONS)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    values = json.loads((shapes() / "Qwen--Qwen3-0.6B.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(values | {"num_hidden_layers": 2}), encoding="utf-8")
    return f"model.path={folder}"


def test_weights_at_the_peak_are_those_of_four_bits(config: str) -> None:
    done = run("model=custom", config, "hardware=gpu_24gb")
    assert done.returncode == 0, done.stderr
    assert ": fits\n" in done.stdout
    assert "packed engine" in done.stdout
    weights = re.search(r"weights ([\d.]+) GiB", done.stdout)
    assert weights
    # Per layer q, k, v, o and the MLP: half a byte each and a byte of scale for 64; embedding (tied) in bf16.
    linear = 2 * (1024 * 128 * (16 + 8 + 8 + 16) + 3 * 1024 * 3072)
    expected = linear * (1 / 2 + 1 / 64) + 2 * 151936 * 1024
    assert float(weights[1]) == pytest.approx(expected / 2**30, abs=0.01)


@pytest.mark.slow
def test_a_card_too_small_is_said_to_be(config: str) -> None:
    done = run("model=custom", config, "hardware=gpu_24gb", "hardware.memory_gb=1")
    assert done.returncode == 0, done.stderr
    assert "on a card of 1 GB: fits in smaller micro-batches" in done.stdout
    gained = re.findall(r"with dataset.max_length=512: .*, (-?[\d.]+) GiB less", done.stdout)
    assert [float(gib) > 0 for gib in gained] == [True]


def test_an_unknown_model_is_named() -> None:
    done = run("model=custom", "model.path=nobody/nothing", "hardware=gpu_24gb")
    assert done.returncode == 2
    assert "model.path=nobody/nothing: no config.json there" in done.stderr


def test_a_sweep_counts_its_reference_once(config: str) -> None:
    words = ("model=custom", config, "hardware=gpu_24gb", "sweep=beta_rank", "sweep.evaluate=false", "--json")
    done = run(*words)
    assert done.returncode == 0, done.stderr
    jobs = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(jobs) == 9
    reference = [job["amounts"]["reference_flops"] > 0 for job in jobs]
    assert reference == [True, *[False] * 8]
    assert len({job["amounts"]["train_flops"] for job in jobs}) == 3, "of three ranks"
    assert {job["engine"] for job in jobs} == {"packed"}
    least = {time["on"]: time["least"] for time in jobs[0]["times"]}
    assert least["L4"] > least["RTX 4090"] > 0


def test_what_cannot_be_faked_is_planned_by_rule(
    compose: Callable[..., Config], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from dpo import plan
    from dpo.planning import card

    monkeypatch.setattr(card.sys, "platform", "darwin")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    plan.plan(compose("model=qwen3_0_6b", "dataset=hh_rlhf", "hardware=gpu_24gb", "tracking=none"))
    assert "by rule" in capsys.readouterr().out
