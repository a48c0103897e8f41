"""A tiny random model folder, a pairs file, and training runs as real processes that can be killed anywhere."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any

WORDS = "the cat dog sat ran on mat hill red blue slow fast and then home away bird sang low high".split()


def make_tokenizer(eos: str = "<|im_end|>") -> Any:
    """A word-level ChatML tokenizer; base models often call another token their end than the template does."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    names = ["<unk>", "<|im_start|>", "<|im_end|>", "user", "assistant", "system", *WORDS]
    if eos not in names:
        names.append(eos)
    raw = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        unk_token="<unk>",
        bos_token="<|im_start|>",
        eos_token=eos,
        pad_token=eos,
    )
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '<|im_start|> ' + m['role'] + '\n' + m['content'] + ' <|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|> assistant\n' }}{% endif %}"
    )
    if eos != "<|im_end|>":
        tokenizer.add_tokens(["<|im_end|>"], special_tokens=True)
    return tokenizer


def make_model(folder: Path, tokenizer: Any = None) -> Path:
    """A two-layer Llama with `make_tokenizer`'s, safetensors."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = tokenizer or make_tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=1,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_pairs(path: Path, count: int = 40) -> Path:
    """Distinct pairs over a small vocabulary."""
    import random

    draw = random.Random(0)
    with path.open("w") as file:
        for number in range(count):
            prompt = " ".join(draw.choices(WORDS, k=4)) + f" {WORDS[number % len(WORDS)]}"
            chosen, rejected = (" ".join(draw.choices(WORDS, k=draw.randint(2, 8))) for _ in range(2))
            file.write(json.dumps({"prompt": prompt, "chosen": chosen + " home", "rejected": rejected}) + "\n")
    return path


def make_singles(path: Path, count: int = 60) -> Path:
    """Single answers, every third of them wanted."""
    import random

    draw = random.Random(1)
    with path.open("w") as file:
        for number in range(count):
            prompt = " ".join(draw.choices(WORDS, k=4)) + f" {WORDS[number % len(WORDS)]}"
            completion = " ".join(draw.choices(WORDS, k=draw.randint(2, 8))) + (" home" if number % 3 == 0 else "")
            file.write(json.dumps({"prompt": prompt, "completion": completion, "label": number % 3 == 0}) + "\n")
    return path


def arguments(model: Path, pairs: Path, *more: str) -> list[str]:
    """A run of 8 steps with a checkpoint every 3, its rows said to want what the rule does."""
    return [
        "model=custom", f"model.path={model}", "dataset=local", f"dataset.path={pairs}", "tracking=none",
        "dpo.max_steps=8", "dpo.batch_size=4", "dpo.save_every=3", "dpo.eval_every=4", "dpo.learning_rate=1e-2",
        "dataset.judges=[rules]", "hardware=cpu", *more,
    ]  # fmt: skip


_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["dpo.training.stages", "bitsandbytes", "peft", "warm_pages"])


def start(
    verb: str,
    argv: list[str],
    cwd: Path,
    at: tuple[str, int, int] | list[tuple[str, int, int]] | None = None,
    environment: dict[str, str] | None = None,
    output: str = "output.txt",
) -> Any:
    """Start `python -m dpo.<verb> argv` in `cwd` as a process of its own; see `_main` for `at`."""
    process = _CONTEXT.Process(target=_main, args=(verb, argv, str(cwd), at, environment or {}, output))
    process.start()
    return process


def run(
    verb: str, argv: list[str], cwd: Path, at: tuple[str, int, int] | list[tuple[str, int, int]] | None = None
) -> tuple[int, str]:
    """Run to the end: (exit code, output). A killed process has the negative signal number as its code."""
    process = start(verb, argv, cwd, at)
    process.join(300)
    assert process.exitcode is not None, "did not end within five minutes"
    return process.exitcode, (cwd / "output.txt").read_text()


def start_ranks(
    argv: list[str],
    cwd: Path,
    at: dict[int, tuple[str, int, int]] | None = None,
    size: int = 2,
    parallel: str = "ddp",
) -> list[Any]:
    """Start a run of several ranks the way torchrun does: by environment variables."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = {"WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size)}
    common |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [
        start(
            "train",
            [*argv, f"hardware.parallel={parallel}"],
            cwd,
            (at or {}).get(rank),
            {**common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            f"output-{rank}.txt",
        )
        for rank in range(size)
    ]


def run_ranks(
    argv: list[str],
    cwd: Path,
    at: dict[int, tuple[str, int, int]] | None = None,
    size: int = 2,
    parallel: str = "ddp",
) -> tuple[list[int], str]:
    """Run all ranks to the end: (their exit codes, what they printed)."""
    processes = start_ranks(argv, cwd, at, size, parallel)
    for process in processes:
        process.join(120)
        assert process.exitcode is not None, "did not end within two minutes"
    text = "".join(f"--- rank {r}\n{(cwd / f'output-{r}.txt').read_text()}" for r in range(size))
    return [process.exitcode for process in processes], text


def _main(
    verb: str,
    argv: list[str],
    cwd: str,
    at: tuple[str, int, int] | list[tuple[str, int, int]] | None,
    environment: dict[str, str],
    output: str,
) -> None:
    """Runs in the child. `at` = (place, n, signal), or several: at the n-th call of that place the process sends
    itself the signal, a real SIGKILL included; or a weight becomes NaN (poison) or another one (drift), a gradient is
    missing (silent), an allocation fails (memory), the disk is full (disk). Nothing else differs from the command
    line."""
    os.chdir(cwd)
    os.environ.update(environment)
    out = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(out, 1)
    os.dup2(out, 2)
    os.environ["DPO_OUTPUTS"] = str(Path(cwd) / "outputs")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    sys.argv = [f"dpo.{verb}", *argv]
    sys.orig_argv = ["python", "-m", f"dpo.{verb}", *argv]
    import importlib

    import torch

    torch.set_num_threads(1)
    module = importlib.import_module(f"dpo.{verb}")
    for place in [at] if isinstance(at, tuple) else at or []:
        _signal_at(*place)
    module.main()


def _signal_at(place: str, number: int, signum: int) -> None:
    import os as target_os

    import torch

    from dpo.evaluation.folder import EvaluationFolder
    from dpo.records.run import Run
    from dpo.training import build, dev, reference
    from dpo.training.trainer import Trainer

    owner: Any
    owner, name = {
        "fsync": (target_os, "fsync"),
        "step": (Trainer, "_forward_backward"),
        "norm": (Trainer, "_get_grad_norm"),
        "dev": (dev, "keep_quantized_in_train_mode"),
        "log": (Trainer, "_drain"),
        "save": (Trainer, "_save_optimizer_and_scheduler"),
        "load": (build, "load_base"),
        "reference": (reference, "ReferenceCache"),
        "final": (Trainer, "save_weights"),
        "last word": (Run, "finish"),
        "drift": (reference, "check_start"),
        "silent": (Trainer, "_get_grad_norm"),
        "rows": (EvaluationFolder, "append"),
        "poison": (Trainer, "_forward_backward"),
        "memory": (Trainer, "_pair_loss"),
        "moments": (torch.optim.AdamW, "step"),
        "disk": (Trainer, "_save_optimizer_and_scheduler"),
    }[place]
    original, calls = getattr(owner, name), 0

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number:
            strike(place, args, signum)
        return original(*args, **kwargs)

    setattr(owner, name, counted)


def strike(place: str, args: tuple[Any, ...], signum: int) -> None:
    """What happens at the place."""
    import errno

    import torch

    if place == "drift":
        parameter = [p for p in args[1].model.parameters() if p.requires_grad][-1]
        parameter.data += 0.1
    elif place == "silent":
        next(p for p in args[0].model.parameters() if p.requires_grad).grad = None
    elif place == "poison":
        parameter = next(p for p in args[0].model.parameters() if p.requires_grad)
        own = parameter.to_local() if hasattr(parameter, "to_local") else parameter
        own.data.view(-1)[0] = float("nan")
    elif place in ("memory", "moments"):
        raise torch.OutOfMemoryError("an allocation failed")
    elif place == "disk":
        raise OSError(errno.ENOSPC, "No space left on device")
    else:
        os.kill(os.getpid(), signum)


def folders(cwd: Path, name: str = "run") -> list[Path]:
    """Run directories under `cwd`; what a kill left before one was ready does not count."""
    root = cwd / "outputs" / name
    return sorted(p for p in root.iterdir() if not p.name.startswith(".")) if root.is_dir() else []


def record(cwd: Path, name: str = "run") -> tuple[Path, dict[str, Any]]:
    """The one run directory under `cwd` and its run.json."""
    (folder,) = folders(cwd, name)
    return folder, json.loads((folder / "run.json").read_text())


def outcome(cwd: Path, name: str = "run") -> tuple[bytes, list[dict[str, Any]]]:
    """Final weights and metric lines without what may differ between two equal runs (times, rates)."""
    folder, _ = record(cwd, name)
    (weights,) = (folder / "adapter").glob("*.safetensors")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        line.pop("time")
        line.pop("pairs_per_second", None)
    return weights.read_bytes(), lines


KILL, TERM, INT = signal.SIGKILL, signal.SIGTERM, signal.SIGINT
