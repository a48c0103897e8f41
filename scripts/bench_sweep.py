"""A 3 x 3 beta-by-rank sweep, ours against nine runs of TRL's trainer as it comes, set-up charged.

    python scripts/bench_sweep.py --pairs FILE [--model DIR] [--steps N] [--trl-runs 9|3] [--json OUT]

Each run is what a user would start: load the model, tokenize, compute references where the arm has any, train. Ours
shares one reference cache among the nine; TRL computes the reference in every step. All runs are in this process, one
after the other, ours and theirs in turn. With `--trl-runs 3` TRL runs each rank at the middle beta only and the nine
are three times those, as beta changes nothing in its work; the result says so.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "src")]

BETAS = (0.03, 0.1, 0.3)
RANKS = (4, 8, 16)
TOLERANCE = {"float32": 2e-3, "bfloat16": 5e-2}
"""Root mean square difference of the two arms' losses, each rounding in its own way."""


def main() -> None:
    """Run all, print totals, write JSON, fail if the losses of a run disagree."""
    options = parse()
    from dpo.engine.allocator import keep_memory, use_huge_pages

    use_huge_pages()
    import torch

    torch.set_num_threads(options.threads)
    keep_memory()
    from bench_step import _shipped_model, _versions

    options.model = options.model or _shipped_model()
    cache = Path(tempfile.mkdtemp(prefix="bench-cache-")) / "reference.sqlite"
    runs = []
    for index, (beta, rank) in enumerate((b, r) for b in BETAS for r in RANKS):
        run: dict[str, Any] = {"beta": beta, "rank": rank}
        arms = ["ours", "trl_default"] if options.trl_runs == 9 or beta == BETAS[1] else ["ours"]
        for arm in arms if index % 2 == 0 else arms[::-1]:
            gc.collect()
            began, began_cpu = time.perf_counter(), time.process_time()
            run[arm] = one_run(arm, beta, rank, options, cache)
            run[arm]["wall"] = time.perf_counter() - began
            run[arm]["cpu"] = time.process_time() - began_cpu
            print(f"beta {beta} rank {rank} {arm:12} {run[arm]['wall']:.1f} s, {run[arm]['cpu']:.1f} cpu s", flush=True)
        runs.append(run)
    totals = {
        arm: {clock: sum(run[arm][clock] for run in runs if arm in run) for clock in ("wall", "cpu")}
        for arm in ("ours", "trl_default")
    }
    measured = [run for run in runs if "trl_default" in run]
    for clock in totals["trl_default"]:
        totals["trl_default"][clock] *= len(runs) / len(measured)
    differences = [
        statistics.fmean((a - b) ** 2 for a, b in zip(run["ours"]["losses"], run["trl_default"]["losses"], strict=True))
        ** 0.5
        for run in measured
    ]
    agree = max(differences) <= TOLERANCE[options.dtype]
    result = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": _versions(),
        "options": {k: v.name if isinstance(v, Path) else str(v) for k, v in vars(options).items()},
        "trl_runs_measured": len(measured),
        "totals": totals,
        "ours_over_theirs": {clock: totals["ours"][clock] / totals["trl_default"][clock] for clock in ("wall", "cpu")},
        "reference_pairs_computed": sum(run["ours"]["misses"] for run in runs),
        "loss_differences": differences,
        "losses_agree": agree,
        "runs": runs,
    }
    print(json.dumps({k: v for k, v in result.items() if k != "runs"}, indent=1))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    if not agree:
        sys.exit("error: the losses of the two arms disagree")


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--pairs", type=Path, required=True)
    parser.add_argument("--model")
    parser.add_argument("--quant", choices=("none", "nf4"), default="none")
    parser.add_argument("--dtype", choices=tuple(TOLERANCE), default="bfloat16")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--trl-runs", type=int, choices=(9, 3), default=9, help="of the nine, how many TRL really does")
    parser.add_argument("--token-budget", type=int, default=1024)
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", type=Path)
    parser.set_defaults(micro_batch=0)
    return parser.parse_args()


def one_run(arm: str, beta: float, rank: int, options: argparse.Namespace, cache: Path) -> dict[str, Any]:
    """Load, tokenize, reference, train: losses of each step, and reference pairs computed."""
    import torch
    from bench_arms import build_model, build_step
    from bench_pairs import read_pairs
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(options.model)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    pairs = read_pairs(options.pairs, tokenizer, options.batch * options.steps, options.max_length)
    if len(pairs) < options.batch * options.steps:
        sys.exit(f"error: {options.pairs}: only {len(pairs)} usable pairs; lower --steps")
    model = build_model(options.model, getattr(torch, options.dtype), options.quant, rank, seed=0)
    step = build_step(arm, model, tokenizer, pairs, options, beta=beta, cache=cache)
    losses = [step(pairs[i : i + options.batch]) for i in range(0, len(pairs), options.batch)]
    return {"losses": losses, "misses": getattr(step, "misses", 0)}


if __name__ == "__main__":
    main()
