"""How fast and in how much memory a full dataset is prepared, against TRL's own preparation of the same rows.

    python scripts/bench_prepare.py compare            # both, interleaved, on a few thousand rows of each source
    python scripts/bench_prepare.py full hh 160000     # one full-size set: rows/s, memory; TRL on its first rows
    python scripts/bench_prepare.py full shp 385000
    python scripts/bench_prepare.py --rows-in FOLDER write hh 160000    # only the rows, for a later `full`

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
import statistics
import subprocess
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
# TRL's rate does not depend on how many rows there are, once starting its processes no longer shows.
TRL_ROWS = 16_000
ARMS = {"TRL, one process": None, "TRL, two processes": 2}
# Largest sum of proportional set sizes (a page shared by n processes counts 1/n in each) of a process and all under it.
WATCH = """
import os, select, sys, psutil
root, peak = psutil.Process(int(sys.argv[1])), 0
while not select.select([sys.stdin], [], [], 0.2)[0]:
    total = 0
    for process in (root, *root.children(recursive=True)):
        try:
            total += process.memory_full_info().pss if process.pid != os.getpid() else 0
        except psutil.Error:
            pass
    peak = max(peak, total)
print(peak)
"""


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
    del own["defaults"]  # type: ignore[arg-type]
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


def timed(work: Callable[[], int]) -> tuple[float, float, int]:
    """(seconds, CPU seconds with those of child processes, pairs)."""
    before, start = os.times(), time.perf_counter()
    pairs = work()
    took, after = time.perf_counter() - start, os.times()
    return took, sum(after[:4]) - sum(before[:4]), pairs


def ours(kind: str, path: Path, tokenizer: Any) -> tuple[float, float, int]:
    """Prepare a file into an empty cache; see `timed`."""
    from dpo.data.prepare import prepare

    with tempfile.TemporaryDirectory(dir=path.parent) as cache:
        return timed(lambda: sum(prepare(config(kind, path), tokenizer, Path(cache)).report["kept"].values()))


def trl(kind: str, path: Path, tokenizer: Any, processes: int | None) -> tuple[float, float, int]:
    """TRL's preparation of the pairs in that file, which it gets parsed, in memory; see `timed`."""
    import datasets
    from trl.trainer.dpo_config import DPOConfig
    from trl.trainer.dpo_trainer import DPOTrainer

    from dpo.data.load import load_files, locate

    with tempfile.TemporaryDirectory() as folder:
        splits = load_files(config(kind, path), locate(config(kind, path)), Path(folder))
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
        options = DPOConfig(output_dir=folder, dataset_num_proc=processes, bf16=False, use_cpu=True)
        trainer: Any = SimpleNamespace(_tokenizer=tokenizer)
        return timed(lambda: len(DPOTrainer._prepare_dataset(trainer, dataset, tokenizer, options, "train")))


def compare(tokenizer: Any, rows: int, blocks: int, folder: Path) -> None:
    """Both on the same rows, one after the other and back (ABBA), median of the paired ratios."""
    for kind in ROWS:
        speed: dict[str, list[float]] = {name: [] for name in ("ours", *ARMS)}
        cpu: dict[str, list[float]] = {name: [] for name in ("ours", *ARMS)}
        for block in range(blocks):
            path = folder / f"{kind}-{block}.jsonl"
            write_rows(path, kind, rows, tokenizer, block)
            first = ours(kind, path, tokenizer)
            for name, processes in ARMS.items():
                took, spent, pairs = trl(kind, path, tokenizer, processes)
                speed[name].append(pairs / took)
                cpu[name].append(1000 * spent / pairs)
            second = ours(kind, path, tokenizer)
            speed["ours"].append(2 * first[2] / (first[0] + second[0]))
            cpu["ours"].append(500 * (first[1] + second[1]) / first[2])
            path.unlink()
        print(f"{kind}: {rows} rows x {blocks} blocks, medians")
        for name in speed:
            faster = statistics.median(a / b for a, b in zip(speed["ours"], speed[name], strict=True))
            leaner = statistics.median(b / a for a, b in zip(cpu["ours"], cpu[name], strict=True))
            ratio = f"; ours: {faster:.1f}x the rows/s, {leaner:.1f}x less CPU" if name != "ours" else ""
            print(f"  {name:18s} {statistics.median(speed[name]):6.0f} rows/s, "
                  f"{statistics.median(cpu[name]):.2f} CPU ms a row{ratio}", flush=True)  # fmt: skip


def watched(work: Callable[[], Any]) -> tuple[Any, float]:
    """(what `work` returns, peak GiB resident of this process and all it starts)."""
    watch = subprocess.Popen(
        [sys.executable, "-c", WATCH, str(os.getpid())], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        result = work()
    finally:
        peak, _ = watch.communicate(b"\n")
    return result, int(peak) / 2**30


def full(tokenizer: Any, kind: str, rows: int, folder: Path) -> None:
    """One full-size set, then TRL on the first TRL_ROWS of the same rows."""
    path, part = folder / f"{kind}-{rows}.jsonl", folder / f"{kind}-part.jsonl"
    if not path.exists():
        pid = os.fork()  # the rows are written by a child, so that this process's peak is that of preparing them
        if pid == 0:
            write_rows(path, kind, rows, tokenizer, 0)
            os._exit(0)
        os.waitpid(pid, 0)
    (took, spent, pairs), peak = watched(lambda: ours(kind, path, tokenizer))
    print(f"{kind}: {rows} rows ({path.stat().st_size / 2**20:.0f} MiB), {pairs} pairs in {took:.0f} s: "
          f"{rows / took:.0f} rows/s, {1000 * spent / rows:.2f} CPU ms a row, peak {peak:.2f} GiB resident "
          "over all processes", flush=True)  # fmt: skip
    with path.open() as whole, part.open("w") as file:
        file.writelines(itertools.islice(whole, TRL_ROWS))
    for name, processes in ARMS.items():
        theirs, cpu, count = trl(kind, part, tokenizer, processes)
        print(f"  {name}, the first {count} of them: {count / theirs:.0f} rows/s, "
              f"{1000 * cpu / count:.2f} CPU ms a row; ours: {rows / took / (count / theirs):.1f}x the rows/s, "
              f"{cpu / count / (spent / rows):.1f}x less CPU", flush=True)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded:smollm2-135m-instruct", help="whose tokenizer; a folder works too")
    parser.add_argument("--rows-in", type=Path, help="keep generated rows here; default: a temporary folder")
    commands = parser.add_subparsers(dest="command", required=True)
    both = commands.add_parser("compare")
    both.add_argument("--rows", type=int, default=4000)
    both.add_argument("--blocks", type=int, default=3)
    for name in ("full", "write"):
        one = commands.add_parser(name)
        one.add_argument("kind", choices=ROWS)
        one.add_argument("rows", type=int)
    given = parser.parse_args()
    tokenizer = load_tokenizer(given.model)
    with tempfile.TemporaryDirectory() as aside:
        folder = given.rows_in or Path(aside)
        if given.command == "compare":
            compare(tokenizer, given.rows, given.blocks, folder)
        elif given.command == "full":
            full(tokenizer, given.kind, given.rows, folder)
        else:
            write_rows(folder / f"{given.kind}-{given.rows}.jsonl", given.kind, given.rows, tokenizer, 0)


if __name__ == "__main__":
    main()
