"""A 3 x 3 sweep that shares its work, against the same nine runs started one by one, each with nothing to share.

    python scripts/bench_sweep_runs.py --json OUT [--arm sweep|separate|both] [--runs N] [key=value ...]

Both arms are the commands one types: `python -m dpo.train -m` over the grid of sweep=beta_rank, against nine times
`python -m dpo.train` and `python -m dpo.evaluate` with a cache folder of their own (tokens, reference log-probs, the
baseline's scores and answers are computed anew; converted weights are shared, a machine has them once). Each run on
its own has all cores.
Further words go to both arms. With --runs only the first N of the nine are run on their own.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))

from dpo.caches.folder import cache_folder
from dpo.sweeps.files import read_sweep

BETAS, RANKS = (0.05, 0.1, 0.3), (8, 16, 64)
EVALUATION = {"split": "dev", "pairs": 200, "prompts": 60}
"""As `sweep.evaluation` has it."""
DEFAULTS = ["experiment=quickstart", "dpo.max_steps=30", "tracking=none"]


def main() -> None:
    """Run the arms, print and write what they took and found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--arm", choices=("sweep", "separate", "both"), default="both")
    parser.add_argument("--runs", type=int, default=len(BETAS) * len(RANKS))
    options, words = parser.parse_known_args()
    words = [*DEFAULTS, *words]
    result: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "cores": len(os.sched_getaffinity(0)),
        "words": words,
    }
    folder = Path(tempfile.mkdtemp(prefix="bench-sweep-runs-"))
    if options.arm != "separate":
        result["sweep"] = run_sweep(folder, words)
    if options.arm != "sweep":
        grid = list(itertools.product(BETAS, RANKS))[: options.runs]
        runs = [run_alone(folder / f"alone-{i}", beta, rank, words) for i, (beta, rank) in enumerate(grid)]
        result["separate"] = {"runs": runs, **{k: sum(run[k] for run in runs) for k in ("wall", "cpu")}}
    if options.arm == "both" and options.runs == len(BETAS) * len(RANKS):
        result["sweep_over_separate"] = {k: result["sweep"][k] / result["separate"][k] for k in ("wall", "cpu")}
    options.json.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({k: v for k, v in result.items() if k != "separate"}, indent=1))


def run_sweep(folder: Path, words: list[str]) -> dict[str, Any]:
    """The sweep: its time, what each job found, references computed over all, and the answer."""
    grid = [f"dpo.beta={','.join(map(str, BETAS))}", f"lora.rank={','.join(map(str, RANKS))}"]
    took = timed("train", ["-m", *grid, *words], folder / "sweep")
    (root,) = (folder / "sweep" / "outputs" / "sweeps").iterdir()
    jobs = read_sweep(root).jobs
    answer = json.loads((root / "answer.json").read_text())
    found = [figures(job.folder, job.label) for job in jobs]
    distinct = max(run["reference"]["pairs"] for run in found)
    computed = sum(run["reference"]["misses"] for run in found)
    return {
        **took,
        "folder": str(root),
        "reference_pairs": distinct,
        "reference_pairs_computed": computed,
        "choice": answer["choice"]["label"],
        "reason": answer["choice"]["reason"],
        "jobs": found,
    }


def run_alone(folder: Path, beta: float, rank: int, words: list[str]) -> dict[str, Any]:
    """One of the nine: training and evaluation as two commands, with its own cache."""
    own = [word for word in words if not word.startswith("sweep.")]
    asked = EVALUATION | dict(
        word.removeprefix("sweep.evaluation.").split("=") for word in words if word.startswith("sweep.evaluation.")
    )
    train = timed("train", [f"dpo.beta={beta}", f"lora.rank={rank}", "name=alone", *own], folder)
    (run,) = (path for path in (folder / "outputs" / "alone").iterdir() if not path.name.startswith("."))
    evaluation = [f"evaluation.{key}={value}" for key, value in asked.items()]
    evaluate = timed("evaluate", [f"run={run}", "evaluation.show=0", *evaluation], folder)
    total = {key: train[key] + evaluate[key] for key in train}
    return {**total, "train": train, "evaluate": evaluate, **figures(run, f"beta {beta}, rank {rank}")}


def timed(verb: str, words: list[str], folder: Path) -> dict[str, float]:
    """Wall and CPU seconds of a command and all it started; ends the benchmark when it fails."""
    cache = folder / "cache"
    cache.mkdir(parents=True, exist_ok=True)
    if not (cache / "models").exists():
        (cache / "models").symlink_to(cache_folder("models"), target_is_directory=True)
    environment = {**os.environ, "DPO_OUTPUTS": str(folder / "outputs"), "DPO_CACHE": str(cache)}
    print(f"python -m dpo.{verb} {' '.join(words)}", flush=True)
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    with (folder / f"{verb}.log").open("w") as log:
        command = [sys.executable, "-m", f"dpo.{verb}", *words]
        code = subprocess.run(command, env=environment, stdout=log, stderr=subprocess.STDOUT, check=False).returncode
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    if code != 0:
        sys.exit(f"error: exit {code}; see {folder / f'{verb}.log'}")
    return {"wall": wall, "cpu": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime}


def figures(run: Path, label: str) -> dict[str, Any]:
    """What a run found and computed, from its directory."""
    (path,) = run.glob("evaluation/*/summary.json")
    summary, ledger = json.loads(path.read_text()), json.loads((run / "ledger.json").read_text())
    return {
        "label": label,
        "accuracy": summary["pairs"]["accuracy"]["value"],
        "rules": summary["judges"]["rules"]["policy"]["value"],
        "kl": summary["divergence"]["per_answer"]["value"],
        "reference": ledger["phases"]["reference"],
        "phases": {name: phase["seconds"] for name, phase in ledger["phases"].items()},
    }


if __name__ == "__main__":
    main()
