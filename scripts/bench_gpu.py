"""A whole session on one GPU, unattended: equality first, then step benchmarks at Llama-3.1-8B's shape.

    python scripts/bench_gpu.py --hh FILE --ultrafeedback FILE --shp FILE --tokenizer DIR --out FOLDER

Weights are random, made once in OUT/model (16 GB); lengths are those of the pairs given, under the tokenizer given. NF4
at rank 8 and 64 on all three sets, then bf16 weights at rank 8 on HH. Every measurement is a process of its own, its
text and JSON lie in OUT, and one that fails leaves the others running; the exit code is 1 if any did. A finished
measurement is not done again, so the same command continues a session that was cut off.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
SHAPE = {
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
}
"""Llama-3.1-8B (its config.json), without the scaling of positions beyond 8,192, which no pair here reaches."""


def main() -> None:
    """Test, make the weights, measure."""
    options = parse()
    options.out.mkdir(parents=True, exist_ok=True)
    tests = [sys.executable, "-m", "pytest", "-q", "-rs", str(HERE.parent / "tests" / "gpu")]
    if not done("equality", tests, options.out):
        sys.exit("error: the packed engine is not equal here (equality.txt); nothing was measured")
    if "skipped" in (options.out / "equality.txt").read_text():
        sys.exit("error: the GPU tests skipped themselves (equality.txt): torch sees no GPU")
    model = options.out / "model"
    make = [sys.executable, __file__, "--make", str(model), "--tokenizer", str(options.tokenizer)]
    if not done("weights", [*make, *(["--small"] if options.small else [])], options.out):
        sys.exit("error: no weights (weights.txt)")
    sets = {"hh": options.hh, "ultrafeedback": options.ultrafeedback, "shp": options.shp}
    plans = [(name, "nf4", rank) for rank in (8, 64) for name in sets] + [("hh", "none", 8)]
    failed = []
    for name, quant, rank in plans:
        label = f"step-{name}-{quant}-r{rank}"
        command = [sys.executable, str(HERE / "bench_step.py"), "--model", str(model), "--pairs", str(sets[name])]
        command += ["--quant", quant, "--rank", str(rank), "--batch", str(options.batch), "--blocks", "5"]
        command += ["--max-length", "2048", "--token-budget", "16384", "--json", str(options.out / f"{label}.json")]
        if not done(label, command, options.out):
            failed.append(label)
    if failed:
        sys.exit(f"error: {', '.join(failed)} failed (see their .txt)")


def done(label: str, command: list[str], out: Path) -> bool:
    """Run `command` into OUT/label.txt unless an earlier session finished it; whether it ended well."""
    mark = out / f"{label}.done"
    if mark.exists():
        return True
    print(f"{label} ...", flush=True)
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent / "src")}
    with (out / f"{label}.txt").open("w") as log:
        code = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, env=environment, check=False).returncode
    print(f"{label}: {'done' if code == 0 else f'exit code {code}'}", flush=True)
    if code == 0:
        mark.touch()
    return code == 0


def make_weights(folder: Path, tokenizer: Path, small: bool) -> None:
    """Random weights of `SHAPE` in bf16 (one layer of an eighth of the width where `small`), with a tokenizer."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    words = AutoTokenizer.from_pretrained(tokenizer)
    ends = {"eos_token_id": words.eos_token_id, "bos_token_id": words.bos_token_id}
    smaller = {"hidden_size": 512, "intermediate_size": 1792, "num_hidden_layers": 1} if small else {}
    smaller |= {"num_attention_heads": 8, "num_key_value_heads": 2} if small else {}
    config = AutoConfig.for_model("llama", **{**SHAPE, **smaller}, **ends)
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    words.save_pretrained(folder)


def parse() -> argparse.Namespace:
    """The command line; makes the weights and ends where it is asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    for name in ("hh", "ultrafeedback", "shp"):
        parser.add_argument(f"--{name}", type=Path, help=".jsonl[.gz] of preference rows")
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder of a tokenizer with a chat template")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--batch", type=int, default=16, help="pairs a step")
    parser.add_argument("--small", action="store_true", help="a toy of the same shape, to try the session")
    parser.add_argument("--make", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.make:
        make_weights(options.make, options.tokenizer, options.small)
        sys.exit()
    if not all((options.hh, options.ultrafeedback, options.shp, options.out)):
        parser.error("--hh, --ultrafeedback, --shp and --out are required")
    return options


if __name__ == "__main__":
    main()
