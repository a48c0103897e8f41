"""Command lines over all verbs, right ones with one to three things changed: done, or refused in one to three lines."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Sequence
from pathlib import Path

import tiny
from torture_calls import refused
from torture_damage import SMALL, finished_run
from torture_world import Case, World

EACH = 40
CODES = (2, 3, 4, 5, 6, 7, 8, 9)
VALUES = (
    "", "nan", "inf", "-inf", "-1", "0", "1e400", "1e-300", "9e80", "0x10", "1_000", "true", "null", "None", "[]", "{}",
    "[1,2", "{a:1}", "[nope]", "[0.1,0.2]", "''", '"', "'", "a b", "${seed}", "${nothing}", "${oc.env:HOME}", "???",
    "../x", "file", "./pipe", "./folder", "file/x", "~", "~nobody/x", "é", "\u202e", "\x1b[31m", "\n", "x" * 5000,
    "*", "%", "=", "a=b", "-", "--", "@", "!x", "1,2", "choice(1,2)", "range(1,9)", "glob(*)", "file:file", "model",
)  # fmt: skip
FLAGS = ("-m", "--cfg", "--help", "--hydra-help", "-c=job", "--multirun=1", "--info", "-p", "--resolve", "--cfg=job",
         "--beta", "--model", "--version", "-x", "--", "+", "~dpo", "~model", "+x=1", "++x=1", "run=",
         "=1")  # fmt: skip
NUMBERS = ("nan", "-inf", "-1", "0", "1e-300", "1e300", "1.5", "99999999999999999999", "2", "[1,2]", "x")
# Keys a line does not have; a change may add one, with its own value, an odd number or an odd value.
MORE: dict[str, tuple[str, ...]] = {
    "train": (
        "seed=1", "resume=folder", "model.adapter=folder", "model.chat_template=chatml", "dataset.max_length=64",
        "dataset.columns.prompt=q", "dataset.chat_template_kwargs.a=1", "lora.dropout=0.1", "lora.rank=4",
        "lora.target_modules=[q_proj]", "dpo=ipo", "dpo.loss=[sigmoid]", "dpo.beta=0.1", "dpo.learning_rate=1e-5",
        "dpo.epochs=1", "dpo.trainer.adam_beta1=0.9", "dpo.trainer.tf32=true", "dpo.trainer.log_level=info",
        "dpo.trainer.dataloader_num_workers=1", "dpo.trainer.lr_scheduler_kwargs.a=1", "hardware.processes=1",
        "hardware.token_budget=64", "hardware.attention=eager", "hardware.memory_gb=1", "hydra.launcher.slots=2",
    ),
    "prepare": ("dataset.min_ratio=2", "dataset.max_length=64", "output=data", "format=parquet"),
    "evaluate": ("evaluation.seed=1", "evaluation.top_k=5", "evaluation.show=1", "evaluation.confidence=0.9"),
    "compare": ("name=test", "confidence=0.9", "seed=1", "show=1", "out=compared"),
    "judge": ("gold=[a]", "responses=prompts.txt", "out=judged", "limit=2", "resamples=100", "confidence=0.9"),
    "report": ("name=test", "show=2"),
    "export": ("bound=0.5", "push=a/b", "dry_run=true", "pairs=2", "seed=1"),
    "chat": ("temperature=1", "top_k=2", "seed=1", "system=x"),
    "status": ("root=folder", "limit=2", "json=true"),
    "synthesize": ("seed=1", "sampling.temperature=1", "sampling.top_k=5", "sampling.batch_size=2"),
    "init": ("--epochs", "1", "--learning-rate", "1e-6", "--lora-rank", "8"),
}  # fmt: skip
LINES: dict[str, tuple[str, ...]] = {
    "train": ("{words}", "dpo.max_steps=1"),
    "prepare": ("model=custom", "model.path={model}", "dataset=local", "dataset.path={pairs}", "dataset.limit=20"),
    "evaluate": ("{run}", *SMALL[:-1]),
    "compare": ("{run}", "resamples=200"),
    "judge": ("{run}", "judge=[tone]"),
    "report": ("{run}",),
    "export": ("{run}", "out=exported", "resamples=200", "format=bf16"),
    "chat": ("{run}", "max_new_tokens=4"),
    "audit": ("{run}/export/fp16",),
    "status": ("name=run",),
    "cache": ("prune", "days=30"),
    "synthesize": ("prompts={prompts}", "out=synthetic", "n=2", "generator=custom", "generator.path={model}",
                   "sampling.max_new_tokens=4", "dev_pairs=1", "test_pairs=1", "hardware=cpu"),
    "init": ("--beta", "0.1", "--force"),
    "dashboard": ("project=dpo", "out=dashboard.json"),
    "doctor": ("--json",),
}  # fmt: skip


def words(world: World) -> list[Case]:
    """Every verb in turn."""
    names = [(verb, f"words/{verb}/{number}") for number in range(EACH) for verb in LINES]
    return [Case(name, lambda cwd, v=verb, n=name: _line(world, v, n, cwd)) for verb, name in names]


def _line(world: World, verb: str, name: str, cwd: Path) -> str | None:
    draw = world.draw(name)
    shutil.copytree(finished_run(world, world.options[0]), cwd, dirs_exist_ok=True)
    # What a mutated word may name lies here: nothing outside is ever a path of ours.
    (cwd / "file").write_text("a file\n")
    (cwd / "folder").mkdir()
    os.mkfifo(cwd / "pipe")
    (cwd / "prompts.txt").write_text("the cat sat\nred dog ran\n")
    values = {"run": tiny.folders(cwd)[0], "cwd": cwd, "model": world.model, "pairs": world.pairs,
              "prompts": cwd / "prompts.txt"}  # fmt: skip
    line = []
    for word in LINES[verb]:
        line += world.words(world.options[0]) if word == "{words}" else [word.format(**values)]
    for _ in range(draw.randint(1, 3)):
        line = mutated(line, draw, MORE.get(verb, ()))
    line = [word.replace("\0", "") for word in line]
    # One entry for all verbs; flags and the newest run are its business too.
    ended = world.run("cli", [verb, *line], cwd, stdin="")
    if ended.code == 0:
        wrong = ended.fault()
    elif verb == "doctor" and ended.code == 1 and "Traceback" not in ended.output:
        wrong = None  # the default job cannot run here
    else:
        wrong = refused(ended, CODES)
    return wrong and f"{verb} {line}: {wrong}"


def mutated(line: list[str], draw: random.Random, more: Sequence[str] = ()) -> list[str]:
    """The words with one change, which may be one of `more` added."""
    line = list(line)
    if more and draw.random() < 0.4:
        word = draw.choice(more)
        key, equals, value = word.partition("=")
        value = draw.choice((value, draw.choice(NUMBERS), draw.choice(NUMBERS), draw.choice(VALUES)))
        return [*line, f"{key}={value}" if equals else word]
    if not line:
        return [draw.choice(FLAGS)]
    at = draw.randrange(len(line))
    key, equals, value = line[at].partition("=")
    what = draw.choice(("value", "value", "value", "key", "letter", "drop", "double", "flag", "split", "path"))
    if what == "value":
        line[at] = f"{key}={draw.choice(VALUES)}" if equals else draw.choice(VALUES)
    elif what == "key":
        line[at] = f"{_slip(key, draw)}{equals}{value}"
    elif what == "letter":
        line[at] = _slip(line[at], draw)
    elif what == "drop":
        line.pop(at)
    elif what == "double":
        line.insert(draw.randrange(len(line) + 1), line[at])
    elif what == "flag":
        line.insert(draw.randrange(len(line) + 1), draw.choice(FLAGS))
    elif what == "split":
        line[at : at + 1] = [key, value]
    else:
        line[at] = f"{key}{draw.choice(('.', '/', '@', ':', '..'))}{value}"
    return line


def _slip(text: str, draw: random.Random) -> str:
    """One letter gone, doubled, swapped or another."""
    if not text:
        return "x"
    at = draw.randrange(len(text))
    other = draw.choice("aeiou_.=-[]{}$\\'\"0 ")
    before, after = text[:at], text[at + 1 :]
    return draw.choice((before + after, before + text[at] + text[at:], before + other + after))
