"""`python -m dpo.prepare`: load, check and tokenize a dataset, and show what became of every row."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from functools import partial
from pathlib import Path

from omegaconf import MISSING

from dpo.command.classic import FILES
from dpo.command.recipe import with_files
from dpo.config.datasets import Dataset
from dpo.config.entry import main as app
from dpo.config.model import Model


class PairFormat(Enum):
    """How the pairs are written for review."""

    jsonl = "jsonl"
    parquet = "parquet"


@dataclass
class Prepare:
    """The config of this verb."""

    model: Model = MISSING
    dataset: Dataset = MISSING
    output: str = MISSING
    format: PairFormat = MISSING


def prepare(config: Prepare) -> None:
    """Prepare the dataset or find it prepared, write pairs and report into a folder, print one screen."""
    from dpo.records.quiet import quiet

    print(f"preparing {config.dataset.source} for {config.model.path}; loading", flush=True)
    quiet()
    from dpo.data.prepare import prepare as prepare_pairs
    from dpo.data.remarks import check_positions
    from dpo.data.review import write_pairs
    from dpo.modeling.policy import model_config, templates
    from dpo.modeling.positions import positions, steady
    from dpo.modeling.tokenizer import load_tokenizer
    from dpo.modeling.weights import resolve
    from dpo.pages.data import write_page
    from dpo.pages.data_screen import show
    from dpo.records.files import write_json

    weights = resolve(config.model.path, config.model.revision, config.model.trust_remote_code)
    tokenizer = load_tokenizer(weights.folder, config.model.chat_template, templates(), weights.remote_code)
    made = model_config(weights)
    data = prepare_pairs(config.dataset, tokenizer)
    beyond = check_positions(data.report, positions(made), steady(made), weights.source)
    folder = Path(config.output).expanduser() / f"{config.dataset.source}-{data.fingerprint[:10]}"
    folder.mkdir(parents=True, exist_ok=True)
    write_pairs(data, folder, config.format.name)
    write_json(folder / "data.json", data.report)
    write_page(data, folder / "data.html")
    show(data, folder)
    if beyond:
        print(beyond, flush=True)


def main() -> None:
    """Compose, parse and prepare; exits with the code of the outcome."""
    app("prepare", Prepare, prepare, files=partial(with_files, groups=FILES["prepare"]))


if __name__ == "__main__":
    main()
