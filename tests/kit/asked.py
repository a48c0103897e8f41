"""Composes `python -m dpo.evaluate` as the command line would."""

from __future__ import annotations

from pathlib import Path

import hydra
from omegaconf import OmegaConf

from dpo.config import entry, folder
from dpo.config.evaluation import Evaluate, check_ranges, register
from dpo.config.parse import parse


def asked(run: Path, *overrides: str) -> Evaluate:
    """The parsed config of an evaluation of `run`, small unless told otherwise."""
    register()
    entry.register("evaluate", Evaluate)
    small = ["evaluation.prompts=6", "evaluation.max_new_tokens=8", "evaluation.resamples=200"]
    with hydra.initialize_config_dir(config_dir=str(folder.conf_folder()), version_base="1.3"):
        cfg = hydra.compose("evaluate", [f"run='{run}'", *small, *overrides])
    OmegaConf.resolve(cfg)
    config = parse(cfg, Evaluate)
    check_ranges(config.evaluation, "evaluation.")
    return config
