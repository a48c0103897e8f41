"""Answers sampled a second: transformers' `generate` as it comes, and the sampler of evaluation, synthesis and judges.

    python scripts/bench_sampling.py [--prompts 48] [--samples 2] [--tokens 80] [--blocks 5] [--json OUT]

One process, the shipped model in NF4 with an adapter that changes what it says, the prompts of the shipped test rows,
the same temperature and top k. Arms alternate (ABBA); ratios are those of neighbours, with a bootstrap interval over
the blocks. A token counts as drawn up to the end of its answer, so that what `generate` draws behind it is its loss.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "src")]

TEMPERATURE, TOP_K, RANK, SEED = 0.9, 50, 8, 0
ROWS = Path(__file__).parents[1] / "src" / "dpo" / "data" / "synthetic" / "test.jsonl"


def main() -> None:
    """Measure both arms, print and write what was seen."""
    options = parse()
    from dpo.engine.allocator import keep_memory, use_huge_pages

    use_huge_pages()  # the same allocator for both arms
    import torch
    import transformers
    from bench_arms import build_model
    from transformers import AutoTokenizer

    from dpo.engine.lean_linear import keep_dequantized
    from dpo.engine.memory import free_memory
    from dpo.engine.packed_forward import install
    from dpo.modeling.weights import resolve

    torch.set_num_threads(options.threads)
    keep_memory()
    folder = str(resolve("embedded:smollm2-135m-instruct", "main").folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    dtype = getattr(torch, options.dtype)
    models = {name: moved(build_model(folder, dtype, "nf4", RANK, SEED)) for name in ("generate", "ours")}
    install(models["ours"])
    keep_dequantized(models["ours"], dtype, free_memory(torch.device("cpu")))
    prompts = read_prompts(tokenizer, options.prompts)
    arms: dict[str, Callable[[int], int]] = {
        "generate": lambda seed: by_generate(models["generate"], tokenizer, prompts, options, seed),
        "ours": lambda seed: by_ours(models["ours"], tokenizer, prompts, options, seed),
    }
    seen: dict[str, list[dict[str, float]]] = {name: [] for name in arms}
    for block in range(options.blocks + 1):
        for name in list(arms) if block % 2 == 0 else list(arms)[::-1]:
            began, cpu = time.perf_counter(), time.process_time()
            tokens = arms[name](block)
            wall, cpu = time.perf_counter() - began, time.process_time() - cpu
            print(f"block {block} {name:9} {tokens} tokens, {tokens / wall:6.1f} a second", flush=True)
            if block:  # the first warms up
                seen[name].append({"tokens": tokens, "wall": wall, "cpu": cpu})
    result = {
        "date": datetime.date.today().isoformat(), "machine": platform.processor() or platform.machine(),
        "threads": options.threads, "torch": torch.__version__, "transformers": transformers.__version__,
        "settings": {key: value for key, value in vars(options).items() if key != "json"},
        "wall": ratio(seen, "wall"), "cpu": ratio(seen, "cpu"), "blocks": seen,
    }  # fmt: skip
    print(json.dumps({key: result[key] for key in ("wall", "cpu")}, indent=1))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--prompts", type=int, default=48)
    parser.add_argument("--samples", type=int, default=2, help="answers a prompt; all prompts make one batch")
    parser.add_argument("--tokens", type=int, default=80, help="at most, an answer")
    parser.add_argument("--blocks", type=int, default=5)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def moved(model: Any) -> Any:
    """The adapter as after a short training: B is no longer zero."""
    import torch

    torch.manual_seed(SEED)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.01)
    return model.eval()


def read_prompts(tokenizer: Any, count: int) -> list[list[int]]:
    """Token ids of the first prompts, up to where the answer begins."""
    rows = [json.loads(line) for line in ROWS.open(encoding="utf-8")][:count]
    chats = [[{"role": "user", "content": row["prompt"]}] for row in rows]
    return [tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"] for chat in chats]


def by_generate(model: Any, tokenizer: Any, prompts: list[list[int]], options: Any, seed: int) -> int:
    """Tokens drawn by transformers, in one padded batch."""
    import torch

    torch.manual_seed(seed)
    inputs = tokenizer.pad({"input_ids": prompts}, padding_side="left", return_tensors="pt")
    model.config.use_cache = True
    with torch.no_grad():
        ids = model.generate(
            **inputs, do_sample=True, temperature=TEMPERATURE, top_k=TOP_K, max_new_tokens=options.tokens,
            num_return_sequences=options.samples, pad_token_id=tokenizer.pad_token_id,
        )  # fmt: skip
    answers = ids[:, inputs["input_ids"].shape[1] :]
    ends = (answers == tokenizer.eos_token_id).int()
    return int((ends.cumsum(1) - ends == 0).sum())


def by_ours(model: Any, tokenizer: Any, prompts: list[list[int]], options: Any, seed: int) -> int:
    """Tokens drawn by our sampler, those that end answers included."""
    from dpo.generation.sampling import Sampling, sample

    asked = [prompt for prompt in prompts for _ in range(options.samples)]
    sampling = Sampling(TEMPERATURE, TOP_K, options.tokens, seed)
    seeds = [f"{number}" for number in range(len(asked))]
    drawn = sample(
        model, asked, sampling, {tokenizer.eos_token_id}, tokenizer.pad_token_id, len(asked), row_seeds=seeds
    )
    return sum(len(answer.ids) + answer.finished for _, answers in drawn for answer in answers)


def ratio(seen: dict[str, list[dict[str, float]]], clock: str) -> dict[str, float]:
    """Tokens a second of ours over generate's: median over the blocks, with a 95% bootstrap interval."""
    rates = {name: [row["tokens"] / row[clock] for row in rows] for name, rows in seen.items()}
    ratios = [ours / theirs for ours, theirs in zip(rates["ours"], rates["generate"], strict=True)]
    draw = random.Random(0)
    medians = sorted(statistics.median(draw.choices(ratios, k=len(ratios))) for _ in range(2000))
    return {
        "ratio": statistics.median(ratios), "low": medians[50], "high": medians[1949],
        "generate_tokens_per_second": statistics.median(rates["generate"]),
        "ours_tokens_per_second": statistics.median(rates["ours"]),
    }  # fmt: skip


if __name__ == "__main__":
    main()
