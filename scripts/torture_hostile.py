"""What a stranger could hand over: run directories, models, rows and config files that want to run, read or send."""

from __future__ import annotations

import hashlib
import json
import pickle
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tiny
import yaml
from torture_damage import SMALL
from torture_hostile_inputs import rows, templates, unsafe_words
from torture_hostile_reach import ESCAPES, MEMORY, Payload, copied, drawn, harm
from torture_process import Ended
from torture_words_unsafe import FORMS, YAML_CODE
from torture_world import Case, World, interleave

READERS: dict[str, tuple[str, ...]] = {
    "evaluate": ("evaluate", "{run}", "evaluation.name=again", *SMALL[:-1]),
    "export": ("export", "{run}", "out={cwd}/exported", "resamples=200"),
    "judge": ("judge", "{run}", "judge=[tone]"),
    "report": ("report", "{run}"),
    "compare": ("compare", "{run}", "resamples=200"),
    "status": ("status",),
    "audit": ("audit", "{run}/adapter"),
    "chat": ("chat", "{run}"),
    "resume": ("train", "{words}", "resume={run}"),
    "adapter": ("train", "{words}", "model.adapter={run}/adapter", "resume=never"),
}


def hostile(world: World) -> list[Case]:
    """All kinds in turn."""
    of_runs = (_interpolations, _yaml, _escapes, _deep, _pickles, _forged, _headers)
    return interleave(*(kind(world) for kind in (*of_runs, templates, rows, unsafe_words)))


def read_run(world: World, verb: str, cwd: Path) -> Ended:
    run = next(iter(tiny.folders(cwd)))
    name, *words = READERS[verb]
    option = world.options[0]
    given: list[str] = []
    for word in words:
        given += world.words(option) if word == "{words}" else [word.format(run=run, cwd=cwd)]
    return world.run(name, given, cwd, stdin="the cat\n", memory=MEMORY)


# config.yaml that reads the environment, in every way YAML can write it.

PLACES = ("model.path", "dataset.path", "model.adapter", "model.revision", "model.chat_template", "name",
          "lora.target_modules", "tracking.project", "dataset.columns", "dpo.trainer")  # fmt: skip


def _interpolations(world: World) -> Iterator[Case]:
    cases = [
        Case(f"hostile/environment/{place}/{number}/{verb}",
             lambda cwd, f=form, p=place, v=verb: _interpolate(world, f, p, v, cwd))
        for number, form in enumerate(FORMS) for place in PLACES for verb in READERS if verb not in ("audit", "adapter")
    ]  # fmt: skip
    return drawn(world, "environment", cases)


def _interpolate(world: World, form: str, place: str, verb: str, cwd: Path) -> str | None:
    path = copied(world, cwd) / "config.yaml"
    config = yaml.safe_load(path.read_text())
    group, _, key = place.rpartition(".")
    owner = config[group] if group else config
    owner[key] = {"x": "PLACE"} if key in ("columns", "trainer") else "PLACE"
    path.write_text(yaml.safe_dump(config).replace("PLACE", form))
    return harm(read_run(world, verb, cwd), cwd)


def _yaml(world: World) -> Iterator[Case]:
    cases = [
        Case(f"hostile/yaml/{name}/{verb}", lambda cwd, t=text, v=verb: _prefix(world, t, v, cwd))
        for name, text in YAML_CODE.items() for verb in READERS if verb not in ("audit", "adapter")
    ]  # fmt: skip
    return drawn(world, "yaml", cases)


def _prefix(world: World, text: str, verb: str, cwd: Path) -> str | None:
    path = copied(world, cwd) / "config.yaml"
    path.write_text(text + path.read_text())
    return harm(read_run(world, verb, cwd), cwd)


# Text in every string of every file that a terminal would obey.

TEXTS = ("run.json", "data.json", "ledger.json", "metrics.jsonl", "evaluation/test/*.json*", "adapter/*.json",
         "config.yaml", "export/*/*.json")  # fmt: skip


def _escapes(world: World) -> Iterator[Case]:
    for number in range(300):
        name = f"hostile/escapes/{number}"
        yield Case(name, lambda cwd, n=name: _escape(world, n, cwd))


def _escape(world: World, name: str, cwd: Path) -> str | None:
    draw = world.draw(name)
    run = copied(world, cwd)
    if draw.random() < 0.2:
        run = run.rename(run.with_name(f"{ESCAPES}{run.name}"))
    files = sorted(path for pattern in TEXTS for path in run.glob(pattern) if path.stat().st_size)
    for path in draw.sample(files, 3):
        text = path.read_text()
        if path.suffix == ".yaml":
            path.write_text(json.dumps(_spoil(yaml.safe_load(text), draw)))
        elif path.suffix == ".jsonl":
            path.write_text("".join(json.dumps(_spoil(json.loads(line), draw)) + "\n" for line in text.splitlines()))
        else:
            path.write_text(json.dumps(_spoil(json.loads(text), draw)))
    return harm(read_run(world, draw.choice(sorted(READERS)), cwd), cwd)


def _spoil(data: Any, draw: random.Random) -> Any:
    """Escapes in a tenth of the strings and keys."""
    if isinstance(data, dict):
        return {(k + ESCAPES if draw.random() < 0.02 else k): _spoil(v, draw) for k, v in data.items()}
    if isinstance(data, list):
        return [_spoil(item, draw) for item in data]
    return data + ESCAPES if isinstance(data, str) and draw.random() < 0.1 else data


# JSON and YAML that no stack holds, numbers that no type holds.

DEEP = {
    "lists": "[" * 100_000 + "]" * 100_000,
    "mappings": '{"a":' * 100_000 + "1" + "}" * 100_000,
    "digits": '{"step": ' + "9" * 5_000 + ', "status": "complete"}',
    "infinity": '{"step": Infinity, "status": "complete", "created": NaN, "kind": "train"}',
    "wrong": '{"status": ["complete"], "step": {"a": 1}, "attempts": 3, "created": "x", "fingerprints": null}',
    "surrogate": '{"status": "\\ud800", "name": "\\ud800"}',
    "nothing": "null",
}


def _deep(world: World) -> Iterator[Case]:
    files = ("run.json", "ledger.json", "data.json", "metrics.jsonl", "config.yaml", "adapter/adapter_config.json",
             "adapter/tokenizer.json", "adapter/tokenizer_config.json", "evaluation/test/summary.json",
             "evaluation/test/settings.json", "evaluation/test/samples.jsonl", "evaluation/test/pairs.jsonl",
             "export/fp16/certificate.json", "export/fp16/config.json")  # fmt: skip
    cases = [
        Case(f"hostile/json/{kind}/{verb}/{file}", lambda cwd, t=text, f=file, v=verb: _replaced(world, f, t, v, cwd))
        for kind, text in DEEP.items() for file in files for verb in READERS
    ]  # fmt: skip
    return drawn(world, "json", cases)


def _replaced(world: World, file: str, text: str, verb: str, cwd: Path) -> str | None:
    (copied(world, cwd) / file).write_text(text)
    return harm(read_run(world, verb, cwd), cwd)


# Pickles where weights are expected.


def _pickles(world: World) -> Iterator[Case]:
    names = ("adapter_model.bin", "pytorch_model.bin", "training_args.bin", "adapter_model.safetensors")
    cases = [
        Case(f"hostile/pickle/{name}/{alone}/{verb}",
             lambda cwd, n=name, a=alone, v=verb: _pickle(world, n, a, v, cwd))
        for name in names for alone in ("alone", "beside") for verb in READERS if verb != "status"
    ]  # fmt: skip
    return drawn(world, "pickle", cases)


def _pickle(world: World, name: str, alone: str, verb: str, cwd: Path) -> str | None:
    adapter = copied(world, cwd) / "adapter"
    if alone == "alone":
        (adapter / "adapter_model.safetensors").unlink()
    (adapter / name).write_bytes(pickle.dumps(Payload()))
    return harm(read_run(world, verb, cwd), cwd)


def _forged(world: World) -> Iterator[Case]:
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        yield Case(f"hostile/forged/{name}", lambda cwd, n=name: _forge(world, n, cwd))


def _forge(world: World, name: str, cwd: Path) -> str | None:
    """A pickle inside a checkpoint whose manifest a stranger made right."""
    import torch

    option = world.options[0]
    shutil.copytree(world.interrupted(option), cwd, dirs_exist_ok=True)
    for folder in (tiny.folders(cwd)[0] / "checkpoints").glob("step-*"):
        torch.save(Payload(), folder / name)
        manifest = json.loads((folder / "manifest.json").read_text())
        manifest.pop("seal", None)
        data = (folder / name).read_bytes()
        manifest["files"][name] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        plain = json.dumps(manifest, sort_keys=True, separators=(",", ":")).encode()
        sealed = manifest | {"seal": hashlib.sha256(plain).hexdigest()}
        (folder / "manifest.json").write_text(json.dumps(sealed))
    ended = world.run("train", world.words(option), cwd, memory=MEMORY)
    return harm(ended, cwd) or (None if ended.code else "continued all the same")


def _headers(world: World) -> Iterator[Case]:
    tensor: dict[str, Any] = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    headers = {
        "deep": '{"a":' * 50_000 + "1" + "}" * 50_000,
        "infinity": json.dumps({"a": tensor | {"shape": [float("inf")]}}),
        "negative": json.dumps({"a": tensor | {"shape": [-1]}}),
        "overlap": json.dumps({"a": tensor, "b": tensor}),
        "dtype": json.dumps({"a": tensor | {"dtype": "F7"}}),
        "offsets": json.dumps({"a": tensor | {"data_offsets": [0, 2**62]}}),
        "list": "[]",
        "text": json.dumps({"a": "x", "__metadata__": {"format": 7}}),
        "escapes": json.dumps({ESCAPES: tensor}),
    }
    cases = [
        Case(f"hostile/safetensors/{name}/{verb}", lambda cwd, h=header, v=verb: _header(world, h, v, cwd))
        for name, header in headers.items() for verb in ("evaluate", "export", "audit", "chat", "adapter")
    ]  # fmt: skip
    return drawn(world, "safetensors", cases)


def _header(world: World, header: str, verb: str, cwd: Path) -> str | None:
    data = header.encode()
    (copied(world, cwd) / "adapter" / "adapter_model.safetensors").write_bytes(
        len(data).to_bytes(8, "little") + data + b"\0\0\0\0"
    )
    return harm(read_run(world, verb, cwd), cwd)
