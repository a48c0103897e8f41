"""One optimizer step, ours against TRL's: same process, weights, LoRA, pairs; arms interleaved.

    python scripts/bench_step.py --pairs FILE [--model DIR] [--quant none|nf4] [--json OUT]

The reference is precomputed for every arm but `trl_default`, as set-up. `trl_tuned` takes the pairs a micro-batch that
were fastest in its warm-up. An untimed arm `exact` (ours in fp32) goes through the same steps: in fp32 every arm must
give its losses, in bf16 our error against them may be at most 1.5 times TRL's. Exits 1 if the losses disagree.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "src")]

DTYPES = ("bfloat16", "float32")
EXACT_TOLERANCE = 2e-3
"""Between losses of arms that both compute in fp32."""
ERROR_FACTOR = 1.5
"""Our rounding error in bf16 over the larger of TRL's two arms'."""


def main() -> None:
    """Measure, print a table, write JSON, and fail on disagreement."""
    options = parse()
    os.environ.setdefault("OMP_NUM_THREADS", str(options.threads))
    from dpo.engine.allocator import keep_memory, use_huge_pages

    use_huge_pages()  # the same allocator for every arm
    import torch
    from transformers import AutoTokenizer

    torch.set_num_threads(options.threads)
    options.model = options.model or _shipped_model()
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    from bench_arms import ARMS, build_model, build_step
    from bench_pairs import read_pairs

    keep_memory()
    needed = options.batch * (options.blocks + 1)  # the first block warms up
    pairs = read_pairs(options.pairs, tokenizer, needed, options.max_length)
    if len(pairs) < needed:
        sys.exit(f"error: {options.pairs}: {len(pairs)} usable pairs, {needed} needed; lower --blocks or --batch")
    if options.only:
        options.micro_batch = options.micro_batch or 1
        model = build_model(options.model, getattr(torch, options.dtype), options.quant, options.rank, seed=0)
        _only(build_step(options.only, model, tokenizer, pairs, options), pairs, options)
        return
    warm, measured = pairs[: options.batch], pairs[options.batch :]
    arms = list(ARMS)
    options.micro_batch = options.micro_batch or best_micro_batch(tokenizer, warm, options)
    steps, setup = {}, {}
    for arm in [*arms, "exact"]:
        began = time.perf_counter()
        dtype = torch.float32 if arm == "exact" else getattr(torch, options.dtype)
        model = build_model(options.model, dtype, options.quant, options.rank, seed=0)
        kind = argparse.Namespace(**{**vars(options), "dtype": str(dtype)[6:]})
        steps[arm] = build_step("ours" if arm == "exact" else arm, model, tokenizer, pairs, kind)
        setup[arm] = time.perf_counter() - began
        steps[arm](warm)
    rate = matrix_rate(options.dtype)
    losses: dict[str, list[float]] = {arm: [] for arm in [*arms, "exact"]}
    wall: dict[str, list[float]] = {arm: [] for arm in arms}
    cpu: dict[str, list[float]] = {arm: [] for arm in arms}
    for block in range(options.blocks):
        batch = measured[block * options.batch : (block + 1) * options.batch]
        losses["exact"].append(steps["exact"](batch))
        # ABBA: every other block runs in reverse, so that a drift of the machine cancels.
        for arm in arms if block % 2 == 0 else arms[::-1]:
            gc.collect()
            _wait()
            began, began_cpu = time.perf_counter(), time.process_time()
            losses[arm].append(steps[arm](batch))
            _wait()
            wall[arm].append(time.perf_counter() - began)
            cpu[arm].append(time.process_time() - began_cpu)
            print(f"block {block} {arm:12} {wall[arm][-1]:7.1f} s  loss {losses[arm][-1]:.5f}", flush=True)
    pairs, rate = measured, (rate + matrix_rate(options.dtype)) / 2
    result = summary(options, pairs, losses, wall, cpu, setup, rate)
    if options.memory:
        result["peak_memory_mb"] = {arm: peak_memory(arm, options) for arm in arms}
    finish(result, options.json)


def finish(result: dict[str, Any], path: Path | None) -> None:
    """Print and write the result; an error where the losses disagree."""
    print(json.dumps(result, indent=1))
    if path:
        path.write_text(json.dumps(result, indent=1) + "\n")
    if not result["losses_agree"]:
        sys.exit("error: the losses of the arms disagree")


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--pairs", type=Path, required=True, help=".jsonl[.gz] of preference rows")
    parser.add_argument("--model", help="folder of a model (default: the one shipped as a package)")
    parser.add_argument("--quant", choices=("none", "nf4"), default="none")
    parser.add_argument("--dtype", choices=DTYPES, default=DTYPES[0])
    parser.add_argument("--batch", type=int, default=4, help="pairs a step")
    parser.add_argument("--blocks", type=int, default=5, help="measured steps an arm")
    parser.add_argument("--micro-batch", type=int, default=0, help="pairs a micro-batch of trl_tuned (0: the fastest)")
    parser.add_argument("--token-budget", type=int, default=1024, help="tokens a micro-batch of ours")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--max-length", type=int, default=1024, help="leave longer pairs out")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--no-memory", dest="memory", action="store_false", help="skip the fresh process an arm")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    return parser.parse_args()


def _shipped_model() -> str:
    from dpo.modeling.weights import resolve

    return str(resolve("embedded:smollm2-135m-instruct", "main").folder)


def _only(step: Any, pairs: list[Any], options: argparse.Namespace) -> None:
    # The block with the most tokens decides the peak.
    blocks = [pairs[i : i + options.batch] for i in range(0, len(pairs), options.batch)]
    step(max(blocks, key=lambda b: max(len(p.prompt_ids) + max(len(p.chosen_ids), len(p.rejected_ids)) for p in b)))
    import torch

    if torch.cuda.is_available():
        print(f"PEAK {torch.cuda.max_memory_allocated() / 2**20:.0f}")
        return
    # Not getrusage: its maximum survives exec, so a child would report the size of the process that started it.
    status = Path("/proc/self/status").read_text()
    print(f"PEAK {int(status.split('VmHWM:')[1].split()[0]) / 1024:.0f}")


def peak_memory(arm: str, options: argparse.Namespace) -> float:
    """Peak resident MB of a fresh process that does the heaviest step of one arm."""
    command = [sys.executable, __file__, "--only", arm]
    for name in ("pairs", "model", "quant", "dtype", "batch", "blocks", "rank", "threads"):
        command += [f"--{name}", str(getattr(options, name))]
    command += ["--micro-batch", str(options.micro_batch), "--token-budget", str(options.token_budget)]
    command += ["--max-length", str(options.max_length)]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return float(output.rsplit("PEAK", 1)[1])


def _rms(values: list[float]) -> float:
    return statistics.fmean(value * value for value in values) ** 0.5


def best_micro_batch(tokenizer: Any, pairs: list[Any], options: argparse.Namespace) -> int:
    """Pairs a micro-batch at which TRL, tuned, does a step on `pairs` fastest: of 1, 2 and 4, until it gets slower."""
    import torch
    from bench_arms import build_model, build_step

    best, fastest = 1, float("inf")
    for size in (1, 2, 4):
        model = build_model(options.model, getattr(torch, options.dtype), options.quant, options.rank, seed=0)
        kind = argparse.Namespace(**{**vars(options), "micro_batch": size})
        step = build_step("trl_tuned", model, tokenizer, pairs, kind)
        step(pairs[:size])
        began = time.process_time()
        step(pairs)
        took = time.process_time() - began
        print(f"trl_tuned with {size} pairs a micro-batch: {took:.1f} cpu s", flush=True)
        if took > fastest:
            break
        best, fastest = size, took
    return best


def matrix_rate(dtype: str) -> float:
    """FLOP/s of a plain matrix product in `dtype` on the GPU, or on all threads, best of five."""
    import torch

    kind = getattr(torch, dtype)
    device, size = ("cuda", 8192) if torch.cuda.is_available() else ("cpu", 1024)
    left, right = (torch.randn(size, size, device=device).to(kind) for _ in range(2))
    best = 0.0
    for _ in range(5):
        _wait()
        began = time.perf_counter()
        for _ in range(4):
            left @ right
        _wait()
        best = max(best, 4 * 2 * size**3 / (time.perf_counter() - began))
    return best


def _wait() -> None:
    """Until a GPU has done what it was given."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def summary(
    options: argparse.Namespace,
    pairs: list[Any],
    losses: dict[str, list[float]],
    wall: dict[str, list[float]],
    cpu: dict[str, list[float]],
    setup: dict[str, float],
    rate: float,
) -> dict[str, Any]:
    """Everything measured."""
    import torch
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(options.model)
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    heads = config.num_attention_heads + config.num_key_value_heads
    linear = config.num_hidden_layers * config.hidden_size * (2 * heads * head + 3 * config.intermediate_size)
    completion = sum(len(p.chosen_ids) + len(p.rejected_ids) for p in pairs)
    tokens = sum(len(p.prompt_ids) for p in pairs) + completion
    useful = 4 * (linear * tokens + config.vocab_size * config.hidden_size * completion)
    others = [arm for arm in wall if arm != "ours"]
    errors = {arm: _rms([a - b for a, b in zip(losses[arm], losses["exact"], strict=True)]) for arm in wall}
    if options.dtype == "float32":
        agree = all(error <= EXACT_TOLERANCE for error in errors.values())
    else:
        agree = errors["ours"] <= ERROR_FACTOR * max(errors["trl_default"], errors["trl_tuned"])
    total = {arm: sum(times) for arm, times in wall.items()}
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": {"cpu": platform.processor() or platform.machine(), "threads": options.threads,
                    "load_average": os.getloadavg()[0],
                    "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None},
        "versions": {"python": platform.python_version(), **_versions()},
        "options": {k: v.name if isinstance(v, Path) else str(v) for k, v in vars(options).items()},
        "ratios": {arm: ratio(wall[arm], wall["ours"]) for arm in others},
        "cpu_ratios": {arm: ratio(cpu[arm], cpu["ours"]) for arm in others},
        "pairs_per_second": {arm: len(pairs) / seconds for arm, seconds in total.items()},
        "wall_seconds": wall,
        "cpu_seconds": cpu,
        "setup_seconds": setup,
        "useful_flops": useful,
        "useful_flops_per_second": {arm: useful / seconds for arm, seconds in total.items()},
        "matrix_rate": rate,
        "fraction_of_matrix_rate": useful / total["ours"] / rate,
        "torch_threads": torch.get_num_threads(),
        "losses": losses,
        "loss_errors": errors,
        "losses_agree": agree,
    }  # fmt: skip


def ratio(theirs: list[float], ours: list[float]) -> dict[str, float]:
    """Median of the paired ratios theirs / ours, with a 95% bootstrap interval."""
    ratios = [a / b for a, b in zip(theirs, ours, strict=True)]
    rng = random.Random(0)
    medians = sorted(statistics.median(rng.choices(ratios, k=len(ratios))) for _ in range(2000))
    return {"median": statistics.median(ratios), "low": medians[50], "high": medians[1949]}


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("torch", "transformers", "trl", "peft", "bitsandbytes")}


if __name__ == "__main__":
    main()
