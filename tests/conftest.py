"""Shared fixtures: the real data folder, composed configs, an isolated working folder."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Test processes and what they start stay off every hub and tracker.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
for name in ("WANDB_API_KEY", "HF_TOKEN"):
    os.environ.pop(name, None)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real rows: $DPO_REAL_DATA, or ../shared/data beside the checkout."""
    folder = Path(os.environ.get("DPO_REAL_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"real rows are not at {folder}; set DPO_REAL_DATA to run this test")
    return folder


@pytest.fixture
def compose() -> Callable[..., object]:
    """compose("dpo.beta=0.2") -> Config, as `python -m dpo.train` would make it."""
    import hydra
    from omegaconf import OmegaConf

    from dpo.config.app import conf_folder, register
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
    from dpo.modeling.cache import cache_folder

    models = cache_folder("models")
    folder = tmp_path_factory.mktemp("cache")
    (folder / "models").symlink_to(models, target_is_directory=True)
    os.environ["DPO_CACHE"] = str(folder)
