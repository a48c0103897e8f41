"""Shared fixtures: the real data folder, a browser, composed configs, an isolated working folder."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
# Test processes and what they start stay off every hub and tracker.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# A shell makes what it starts in the background deaf to Ctrl-C, and so every process a test starts and interrupts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
for name in ("WANDB_API_KEY", "HF_TOKEN"):
    os.environ.pop(name, None)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real rows: $DPO_REAL_DATA, or ../shared/data beside the checkout."""
    folder = Path(os.environ.get("DPO_REAL_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"real rows are not at {folder}; set DPO_REAL_DATA to run this test")
    return folder


@pytest.fixture(scope="session")
def chromium() -> str:
    """Path of a Chromium; tests that need one skip where it is not installed."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if found := shutil.which(name):
            return found
    pytest.skip("Chromium is not installed: apt-get install chromium runs the page tests")


@pytest.fixture
def compose() -> Callable[..., object]:
    """compose("dpo.beta=0.2") -> Config, as `python -m dpo.train` would make it."""
    import hydra
    from omegaconf import OmegaConf

    from dpo.config.entry import register
    from dpo.config.folder import conf_folder
    from dpo.config.parse import parse
    from dpo.config.schema import Config

    register("config", Config)

    def composed(*overrides: str) -> Config:
        with hydra.initialize_config_dir(config_dir=str(conf_folder()), version_base="1.3"):
            cfg = hydra.compose("config", list(overrides))
        OmegaConf.resolve(cfg)
        return parse(cfg, Config)

    return composed


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Tests keep tokens, references and file hashes to themselves; converted weights are shared, they are costly."""
    from dpo.caches.folder import cache_folder

    models = cache_folder("models")
    folder = tmp_path_factory.mktemp("cache")
    (folder / "models").symlink_to(models, target_is_directory=True)
    os.environ["DPO_CACHE"] = str(folder)


@pytest.fixture(scope="session", autouse=True)
def no_width() -> None:
    """readline, which a test's worker imports, writes a width of 80 into the environment; nobody asked for one."""
    for name in ("COLUMNS", "LINES"):
        os.environ.pop(name, None)


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A QLoRA run of eight steps on a tiny model, trained once; not to be written to."""
    import tiny

    base = tmp_path_factory.mktemp("tiny_run")
    model, pairs = tiny.make_model(base / "model"), tiny.make_pairs(base / "pairs.jsonl", 60)
    code, output = tiny.run("train", tiny.arguments(model, pairs, "dataset.test_fraction=0.4"), base)
    assert code == 0, output
    return tiny.record(base)[0]


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of eight steps on a tiny model; not to be written to."""
    import tiny

    base = tmp_path_factory.mktemp("trained")
    model, pairs = tiny.make_model(base / "model"), tiny.make_pairs(base / "pairs.jsonl", 60)
    code, output = tiny.run(
        "train", tiny.arguments(model, pairs, "dataset.test_fraction=0.4", "hardware.precision=fp32"), base
    )
    assert code == 0, output
    return tiny.record(base)[0]


@pytest.fixture(scope="session")
def compose_verb() -> Callable[..., Any]:
    """compose_verb("export", Export, "run=x") -> the parsed config of a verb, as its command line would compose it."""
    return _compose_verb


def _compose_verb(name: str, schema: type, *overrides: str) -> Any:
    """The parsed config of a verb with a primary config of its own, as its command line would compose it."""
    import hydra
    from omegaconf import OmegaConf

    from dpo.config import entry, folder
    from dpo.config.parse import parse

    entry.register(name, schema)
    with hydra.initialize_config_dir(config_dir=str(folder.conf_folder()), version_base="1.3"):
        cfg = hydra.compose(name, list(overrides))
    OmegaConf.resolve(cfg)
    return parse(cfg, schema)


@pytest.fixture(scope="session")
def export_run() -> Callable[..., Path]:
    """export_run(run, "format=fp32") -> the folder, as `python -m dpo.export` makes it."""
    from dpo.config.export import Export
    from dpo.export import export

    def made(run: Path, *overrides: str) -> Path:
        return export(_compose_verb("export", Export, f"run='{run}'", "resamples=200", *overrides))

    return made


@pytest.fixture(scope="session")
def tiny_export(tiny_run: Path, export_run: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run exported in bf16; not to be written to."""
    return export_run(tiny_run, f"out='{tmp_path_factory.mktemp('export') / 'bf16'}'", "format=bf16")
