"""Hostile inputs: templates of models, rows of data sets, words and YAML files that want code or more than there is."""

from __future__ import annotations

import base64
import gzip
import json
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path

from torture_hostile_reach import ESCAPES, MEMORY, Payload, copied, drawn, harm
from torture_words_unsafe import TEMPLATES, UNSAFE_WORDS, YAML_FILES
from torture_world import Case, World


def templates(world: World) -> Iterator[Case]:
    for name, template in TEMPLATES.items():
        yield Case(f"hostile/template/{name}", lambda cwd, t=template: _template(world, t, cwd))


def _template(world: World, template: str, cwd: Path) -> str | None:
    shutil.copytree(world.model, cwd / "model")
    (cwd / "model" / "chat_template.jinja").write_text(template)
    words = world.words(world.options[0], f"model.path={cwd / 'model'}")
    ended = world.run("train", words, cwd, memory=MEMORY)
    return harm(ended, cwd) or (None if ended.code else "trained all the same")


def rows(world: World) -> Iterator[Case]:
    row = {"prompt": "the cat", "chosen": "sat home", "rejected": "ran"}
    bad: dict[str, bytes] = {
        "escapes.jsonl": json.dumps({**row, "chosen": "", ESCAPES: ESCAPES}).encode(),
        "escapes.csv": f"prompt,chosen,{ESCAPES}\na,b,c\n".encode(),
        "deep.jsonl": ('{"prompt": ' + "[" * 50_000 + "]" * 50_000 + "}").encode(),
        "deep.json": ("[" * 100_000 + "]" * 100_000).encode(),
        "digits.jsonl": ('{"prompt": ' + "9" * 6_000 + "}").encode(),
        "line.jsonl.gz": gzip.compress(b'{"prompt": "' + b"a" * (2**30) + b'"}', 1),
        "nulls.jsonl": b"\0" * 1_000_000,
        "pickle.parquet": pickle.dumps(Payload()),
        "base64.jsonl": base64.b64encode(pickle.dumps(Payload())),
    }
    for name, data in bad.items():
        for verb in ("prepare", "train"):
            yield Case(f"hostile/rows/{name}/{verb}", lambda cwd, n=name, d=data, v=verb: _row(world, n, d, v, cwd))


def _row(world: World, name: str, data: bytes, verb: str, cwd: Path) -> str | None:
    path = cwd / name
    path.write_bytes(data)
    words = [f"model.path={world.model}", "model=custom", "dataset=local", f"dataset.path={path}"]
    ended = world.run(verb, words if verb == "prepare" else [*words, "tracking=none"], cwd, memory=MEMORY)
    return harm(ended, cwd) or (None if ended.code else "taken all the same")


# Words and YAML files that want code, folders or more than there is.


def unsafe_words(world: World) -> Iterator[Case]:
    cases = []
    for number, (verb, *words) in enumerate(UNSAFE_WORDS):
        cases.append(Case(f"hostile/words/{number}", lambda cwd, v=verb, w=words: _word(world, v, w, cwd)))
    return drawn(world, "words", cases)


def _word(world: World, verb: str, words: list[str], cwd: Path) -> str | None:
    run = copied(world, cwd)
    for name, text in YAML_FILES.items():
        path = cwd / "conf" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    before = set(cwd.parent.iterdir())
    given = [_filled(word, run=run, secret=world.canaries["OPENAI_API_KEY"]) for word in words]
    if verb == "train":
        given = [*world.words(world.options[0]), *given]
    ended = world.run(verb, given, cwd, memory=MEMORY)
    if wrong := harm(ended, cwd):
        return f"{words}: {wrong}"
    if ended.code == 0:
        return f"{words}: taken all the same: {ended.output[-200:]!r}"
    more = set(cwd.parent.iterdir()) - before
    return f"{words}: wrote outside: {more}" if more else None


def _filled(word: str, **values: object) -> str:
    for name, value in values.items():
        word = word.replace(f"{{{name}}}", str(value))
    return word
