"""`python -m dpo.train`: from one composed config to an aligned adapter and a run directory that explains itself."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

from dpo.command.recipe import with_files
from dpo.config.checks.mixture import parts_of
from dpo.config.datasets import Mixture, Rows
from dpo.config.entry import main as app
from dpo.config.losses import REFERENCE_FREE
from dpo.config.schema import Config
from dpo.config.sweeps import Grid
from dpo.errors import ConfigError
from dpo.planning.refuse import refuse_unfit
from dpo.sweeps.orphan import end_with_the_sweep
from dpo.sweeps.run import run_sweep


def train(config: Config) -> Path:
    """Train one run to its last step, or continue it there; returns the run directory."""
    what = f"{config.model.path} on {config.dataset.source}, beta {config.dpo.beta:g}"
    print(f"{config.name}: {what}; loading", flush=True)
    check_paths(config)
    from dpo.distributed import launch
    from dpo.engine.allocator import use_huge_pages
    from dpo.modeling.device import pin_one_gpu
    from dpo.records.quiet import quiet

    if launch.starts_ranks(config.hardware):
        return launch.run(config)
    place = launch.take_place()
    pin_one_gpu()
    use_huge_pages()
    quiet()
    from dpo.distributed.ranks import joined
    from dpo.pages.ending import end_training
    from dpo.planning.forecast import forecast
    from dpo.planning.needs import need_of
    from dpo.release.card import model_card
    from dpo.training import reference, stages
    from dpo.training.base import check_device, find_base
    from dpo.training.build import build_trainer
    from dpo.training.checks.start_value import check_start_value
    from dpo.training.continuing import find_checkpoint
    from dpo.training.job import open_job

    with joined(place, config.hardware.device) as ranks:
        check_device(config)
        with open_job(config, ranks) as job:
            base = find_base(job)
            data = stages.load_data(job, base)
            checkpoint = find_checkpoint(job, base.adapter, data.report)
            needed = stages.needed_pairs(job, data)
            trainer = build_trainer(job, base, data, needed, checkpoint, need_of)
            forecast(job, trainer, data)
            if REFERENCE_FREE & set(config.dpo.loss):
                if checkpoint is None:
                    check_start_value(job, trainer, needed, base)
            else:
                reference.add_reference(job, base, trainer, reference.compared_pairs(job, data, needed))
                if checkpoint is None:
                    reference.check_start(job, trainer, needed, base.compute)
            with stages.tracked(job) as tracker:
                stages.run_steps(job, trainer, tracker, checkpoint, base.compute)
                stages.save_final(job, trainer, tracker, base.tokenizer, model_card)
        if ranks.first and not os.environ.get("DPO_SWEEP"):
            end_training(job.run.folder)
    return job.run.folder


def check_paths(config: Config) -> None:
    """What drivers, files and the hub can show, before torch is imported and a run directory made."""
    from dpo.data.load import locate
    from dpo.modeling.device import check_driver
    from dpo.modeling.weights import check_there

    check_driver(config.hardware.device)

    if config.hardware.attention == "flash_attention_2" and find_spec("flash_attn") is None:
        raise ConfigError("hardware.attention=flash_attention_2: needs the package flash-attn; sdpa is the default")
    check_there(config.model.path, config.model.revision)
    if config.model.adapter is not None:
        check_there(config.model.adapter, config.model.adapter_revision, "model.adapter")
    dataset = config.dataset
    for rows in parts_of(dataset).values() if isinstance(dataset, Mixture) else [dataset]:
        if isinstance(rows, Rows) and rows.path is not None:
            locate(rows)


def sweep(grid: Grid[Config]) -> None:
    """Run every job of a grid, if none of them is one that cannot fit."""
    refuse_unfit(grid.jobs)
    run_sweep(grid)


def main() -> None:
    """Compose, parse and train; exits with the code of the outcome."""
    end_with_the_sweep()
    app("config", Config, train, multirun=sweep, files=with_files)


if __name__ == "__main__":
    main()
