"""Cutting the network changes nothing: the same adapter, metrics and answers from inside a namespace without one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny

CUT = ["unshare", "--map-root-user", "--net"]
REACH = "import socket; socket.create_connection(('192.0.2.1', 443), timeout=5)"


@pytest.fixture(scope="module")
def namespace() -> None:
    """A network namespace with not even a loopback; skipped where the kernel lets no user make one."""
    try:
        made = subprocess.run([*CUT, sys.executable, "-c", REACH], capture_output=True, text=True, timeout=60)
    except FileNotFoundError:
        pytest.skip("no unshare (util-linux) here to cut the network with")
    if "unreachable" not in made.stderr:
        pytest.skip(f"no network namespace for this user: {made.stderr.strip().splitlines()[-1]}")


def run(verb: str, argv: list[str], cwd: Path, cut: bool) -> str:
    """The verb as a command, the hub's and W&B's own switches left alone; returns what it printed.

    Without a network it has a W&B key, the worst case: it must find out by itself that nobody answers.
    """
    if not cut:
        process = tiny.start(verb, argv, cwd, environment={"DPO_CACHE": str(cwd / "cache"), "NETRC": os.devnull})
        process.join(500)
        assert process.exitcode == 0, (cwd / "output.txt").read_text()
        return (cwd / "output.txt").read_text()
    taken = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE", "WANDB_MODE")
    environment = {name: value for name, value in os.environ.items() if name not in taken}
    environment |= {"DPO_OUTPUTS": str(cwd / "outputs"), "DPO_CACHE": str(cwd / "cache"), "NETRC": os.devnull}
    environment |= {"WANDB_API_KEY": "a" * 40}
    command = [*CUT, sys.executable, "-m", f"dpo.{verb}", *argv]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def both(tmp_path: Path, argv: list[str]) -> tuple[Path, Path]:
    """Folders of the same run without and with a network, trained with the default tracking."""
    from dpo.caches.folder import cache_folder

    models = cache_folder("models")
    for name in ("without", "with"):
        (tmp_path / name / "cache").mkdir(parents=True)
        # The converted weights are shared, as they are costly; tokens and references are each side's own.
        (tmp_path / name / "cache" / "models").symlink_to(models, target_is_directory=True)
    said = run("train", [*argv, "tracking=wandb"], tmp_path / "without", cut=True)
    assert "tracking: wandb, offline: " in said
    assert "does not answer" in said
    said = run("train", [*argv, "tracking=wandb"], tmp_path / "with", cut=False)
    assert "tracking: wandb, offline: no key found" in said
    return tmp_path / "without", tmp_path / "with"


def test_the_main_job_without_a_network_is_the_same(namespace, tmp_path):
    model, pairs = tiny.make_model(tmp_path / "model"), tiny.make_pairs(tmp_path / "pairs.jsonl")
    argv = [word for word in tiny.arguments(model, pairs) if not word.startswith("tracking=")]
    without, with_one = both(tmp_path, argv)
    assert tiny.outcome(without) == tiny.outcome(with_one)
    for cwd in (without, with_one):
        assert list(tiny.record(cwd)[0].glob("wandb/offline-run-*"))


@pytest.mark.slow
def test_the_quickstart_without_a_network_is_the_same(namespace, tmp_path):
    """The real weights: trained in a few steps, and evaluated."""
    without, with_one = both(
        tmp_path, ["experiment=quickstart", "dpo.max_steps=3", "dpo.batch_size=2", "dpo.eval_limit=4"]
    )
    name = "quickstart"
    assert tiny.outcome(without, name) == tiny.outcome(with_one, name)
    for cwd in (without, with_one):
        run(
            "evaluate",
            [str(tiny.record(cwd, name)[0]), "evaluation.prompts=4", "evaluation.pairs=8"],
            cwd,
            cwd == without,
        )
    for file in ("pairs.jsonl", "samples.jsonl"):
        mine, theirs = (tiny.record(cwd, name)[0] / "evaluation" / "test" / file for cwd in (without, with_one))
        assert mine.read_bytes() == theirs.read_bytes()
