"""How fast and in how much memory a full dataset is prepared, against TRL's own preparation of the same rows.

    python scripts/bench_prepare.py compare            # both, interleaved, on a few thousand rows of each source
    python scripts/bench_prepare.py full hh 160000     # one full-size set, in this process: rows/s and peak memory
    python scripts/bench_prepare.py full shp 385000

Rows are generated: words drawn by rank from the tokenizer's own vocabulary, lengths from the quantiles of real
HH-RLHF and SHP rows (characters, at QUANTILES). Ours is charged with all it does (reading JSON, checks, duplicates,
splits, tokens, report, cache entry on disk, verification); TRL only with its map over pairs already in memory.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import random
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))
os.environ.setdefault("TQDM_DISABLE", "1")

QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)
LENGTHS = {
    "human": (1, 13, 32, 50, 77, 155, 266, 3989),
    "assistant": (3, 25, 73, 152, 317, 761, 1196, 2328),
    "chosen": (2, 20, 64, 142, 298, 713, 1155, 2098),
    "rejected": (2, 22, 74, 166, 322, 771, 1229, 2469),
    "history": (66, 66, 306, 306, 598, 655, 725, 754),
    "comment": (20, 23, 92, 226, 508, 941, 2106, 2553),
}
# Turns of a prompt and how many of 2,482 rows have them.
TURNS = {1: 733, 3: 650, 5: 631, 7: 347, 9: 74, 11: 18, 13: 14, 15: 15}
PAIRS_OF_A_POST = 10


class Writer:
    """Text of a wanted length from the words of a tokenizer's vocabulary, common ones often."""

    def __init__(self, tokenizer: Any, seed: int) -> None:
        self.random = random.Random(seed)
        vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
        words = [piece[1:] for piece, _ in vocabulary if piece.startswith("\u0120") and piece[1:].isalpha()]
        self.words = [word for word in words if word.isascii()][:20_000]
        self.weights = list(itertools.accumulate(1 / (rank + 3) for rank in range(len(self.words))))

    def length(self, kind: str) -> int:
        """Characters, by log-linear interpolation between the quantiles of real rows."""
        place, values = self.random.random(), LENGTHS[kind]
        for i in range(1, len(QUANTILES)):
            if place <= QUANTILES[i]:
                share = (place - QUANTILES[i - 1]) / (QUANTILES[i] - QUANTILES[i - 1])
                return round(math.exp((1 - share) * math.log(values[i - 1]) + share * math.log(values[i])))
        return values[-1]

    def text(self, kind: str) -> str:
        length = self.length(kind)
        words = self.random.choices(self.words, cum_weights=self.weights, k=2 + length // 4)
        for i in range(11, len(words), 12):
            words[i] += self.random.choice((".", ",", "?", ". ", ".\n\n", "'s"))
        return " ".join(words).replace("\n ", "\n")[:length].strip() or "ok"


def hh_rows(writer: Writer, count: int) -> Iterator[dict[str, Any]]:
    sizes, weights = list(TURNS), list(TURNS.values())
    for number in range(count):
        [turns] = writer.random.choices(sizes, weights)
        lead = f"\n\nHuman: {number} {writer.text('human')}"
        for _ in range(turns // 2):
            lead += f"\n\nAssistant: {writer.text('assistant')}\n\nHuman: {writer.text('human')}"
        chosen, rejected = (f"{lead}\n\nAssistant: {writer.text(side)} {side}" for side in ("chosen", "rejected"))
        yield {"chosen": chosen, "rejected": rejected}


def shp_rows(writer: Writer, count: int) -> Iterator[dict[str, Any]]:
    for number in range(count):
        if number % PAIRS_OF_A_POST == 0:
            history = f"{writer.text('history')} {number}"
            comments = [writer.text("comment") + f" {i}" for i in range(PAIRS_OF_A_POST + 1)]
        i = number % PAIRS_OF_A_POST
        yield {"post_id": f"p{number // PAIRS_OF_A_POST}", "domain": "bench_train", "history": history, "labels": 1,
               "score_A": 30, "score_B": 10, "score_ratio": 3.0, "human_ref_A": comments[i],
               "human_ref_B": comments[i + 1]}  # fmt: skip


ROWS: dict[str, Callable[[Writer, int], Iterator[dict[str, Any]]]] = {"hh": hh_rows, "shp": shp_rows}


def write_rows(path: Path, kind: str, count: int, tokenizer: Any, seed: int) -> None:
    with path.open("w") as file:
        for row in ROWS[kind](Writer(tokenizer, seed), count):
            file.write(json.dumps(row) + "\n")


def config(kind: str, path: Path) -> Any:
    """The option's own values, with filters off, so that both sides encode every row."""
    from omegaconf import OmegaConf

    from dpo.config.datasets import SCHEMAS

    option = {"hh": "hh_rlhf", "shp": "shp"}[kind]
    folder = Path(__file__).parents[1] / "conf" / "dataset"
    own = OmegaConf.load(folder / f"{option}.yaml")
    del own["defaults"]  # type: ignore[attr-defined]
    values: dict[str, Any] = {"path": str(path)}
    if kind == "shp":
        values |= {"min_ratio": 1.0, "pairs_per_post": None}
    layers = (OmegaConf.structured(SCHEMAS[option]), OmegaConf.load(folder / "shared.yaml"), own, values)
    return OmegaConf.to_object(OmegaConf.merge(*layers))


def load_tokenizer(folder: str) -> Any:
    from transformers import AutoTokenizer

    if folder.startswith("embedded:"):
        from dpo.modeling.embedded import embedded_folder

        folder = str(embedded_folder(folder.removeprefix("embedded:")))
    return AutoTokenizer.from_pretrained(folder)


def ours(kind: str, path: Path, tokenizer: Any) -> tuple[float, int]:
    """(seconds, pairs) of preparing a file into an empty cache."""
    from dpo.data.prepare import prepare

    with tempfile.TemporaryDirectory(dir=path.parent) as cache:
        start = time.perf_counter()
        data = prepare(config(kind, path), tokenizer, Path(cache))
        took = time.perf_counter() - start
        return took, sum(data.report["kept"].values())


def trl(kind: str, path: Path, tokenizer: Any, processes: int | None) -> tuple[float, int]:
    """(seconds, pairs) of TRL's preparation of the pairs in that file, which it gets parsed, in memory."""
    import datasets
    from trl import DPOConfig, DPOTrainer

    from dpo.data.load import load_splits

    splits = load_splits(config(kind, path))
    rows = [
        {
            "prompt": [{"role": turn.role, "content": turn.content} for turn in pair.prompt],
            "chosen": [{"role": "assistant", "content": pair.chosen}],
            "rejected": [{"role": "assistant", "content": pair.rejected}],
        }
        for part in (splits.train, splits.dev, splits.test)
        for pair in part
    ]
    dataset = datasets.Dataset.from_list(rows)
    datasets.disable_caching()
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        arguments = DPOConfig(output_dir=folder, dataset_num_proc=processes, bf16=False, use_cpu=True)
        start = time.perf_counter()
        done = DPOTrainer._prepare_dataset(
            SimpleNamespace(_tokenizer=tokenizer), dataset, tokenizer, arguments, "train"
        )
        return time.perf_counter() - start, len(done)


def compare(tokenizer: Any, rows: int, blocks: int, folder: Path) -> None:
    """Both on the same rows, one after the other and back (ABBA), median of the paired ratios."""
    for kind in ROWS:
        ratios: dict[str, list[float]] = {"one process": [], "two processes": []}
        speeds: dict[str, list[float]] = {"ours": [], **{name: [] for name in ratios}}
        for block in range(blocks):
            path = folder / f"{kind}-{block}.jsonl"
            write_rows(path, kind, rows, tokenizer, block)
            first = ours(kind, path, tokenizer)
            for name, processes in (("one process", None), ("two processes", 2)):
                took, pairs = trl(kind, path, tokenizer, processes)
                speeds[name].append(pairs / took)
            second = ours(kind, path, tokenizer)
            speed = 2 * first[1] / (first[0] + second[0])
            speeds["ours"].append(speed)
            for name, found in ratios.items():
                found.append(speed / speeds[name][-1])
            path.unlink()
        print(f"{kind}: {rows} rows x {blocks} blocks; rows/s, median:")
        for name, values in speeds.items():
            ratio = f"  ours is {statistics.median(ratios[name]):.1f}x" if name in ratios else ""
            print(
                f"  {'TRL, ' if name in ratios else ''}{name:14s} {statistics.median(values):8.0f}{ratio}", flush=True
            )


def full(tokenizer: Any, kind: str, rows: int, folder: Path) -> None:
    """One full-size set; the peak is this process's, rows included as they pass through."""
    path = folder / f"{kind}.jsonl"
    pid = os.fork()  # the rows are written by a child, so that this process's peak is that of preparing them
    if pid == 0:
        write_rows(path, kind, rows, tokenizer, 0)
        os._exit(0)
    os.waitpid(pid, 0)
    took, pairs = ours(kind, path, tokenizer)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    size = path.stat().st_size / 2**20
    print(f"{kind}: {rows} rows ({size:.0f} MiB), {pairs} pairs in {took:.0f} s: {rows / took:.0f} rows/s, "
          f"peak {peak:.2f} GiB resident")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded:smollm2-135m-instruct", help="whose tokenizer; a folder works too")
    commands = parser.add_subparsers(dest="command", required=True)
    both = commands.add_parser("compare")
    both.add_argument("--rows", type=int, default=4000)
    both.add_argument("--blocks", type=int, default=3)
    one = commands.add_parser("full")
    one.add_argument("kind", choices=ROWS)
    one.add_argument("rows", type=int)
    given = parser.parse_args()
    tokenizer = load_tokenizer(given.model)
    with tempfile.TemporaryDirectory() as folder:
        if given.command == "compare":
            compare(tokenizer, given.rows, given.blocks, Path(folder))
        else:
            full(tokenizer, given.kind, given.rows, Path(folder))


if __name__ == "__main__":
    main()
