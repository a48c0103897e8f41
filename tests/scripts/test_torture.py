"""The torture script: what it takes for a miss, the library it strikes with, and a short run of all of it."""

from __future__ import annotations

import errno
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

import torture_preload
from torture_calls import refused
from torture_damage import CONTENT, damage
from torture_preload import Arm
from torture_process import Ended
from torture_results import Products, Told, wrong_result

ROOT = Path(__file__).parents[2]
WANTED = Products(0, {"summary.json": ["accuracy", "0.5", "time", None]})


@pytest.mark.parametrize(
    ("code", "output", "words", "wrong"),
    [
        (0, "", ["accuracy", "0.5", "time", "7"], None),
        (0, "", ["accuracy", "0.6", "time", "7"], "exit 0 without a word of it"),
        (0, "rows.jsonl: damaged, made anew", ["accuracy", "0.6", "time", "7"], None),
        (4, "error: rows.jsonl: damaged", [], None),
        (4, "error: something is damaged", [], "does not name it"),
        (1, "error: rows.jsonl", [], "exit 1"),
        (-11, "rows.jsonl", [], "exit -11"),
        (2, "rows.jsonl\nTraceback (most recent call last)\nKeyError: 'x'", [], "traceback"),
        (None, "rows.jsonl", [], "hung"),
    ],
)
def test_a_silent_difference_a_traceback_and_a_hang_are_misses(code, output, words, wrong, tmp_path):
    ended = Ended(code, output, 1.0)
    named = Told.of(ended, WANTED, tmp_path).any("rows.jsonl")
    found = wrong_result(ended, Products(code, {"summary.json": words}), WANTED, named, named)
    assert (found is None) if wrong is None else (found is not None and wrong in found)


def test_a_refusal_is_one_to_three_lines_and_a_code_that_fits():
    assert refused(Ended(7, "step 1\nerror: no room\n  free some", 1.0), (7,)) is None
    assert refused(Ended(4, "error: no room", 1.0), (7,)) is not None
    assert refused(Ended(7, "error: a\n  b\n  c\n  d", 1.0), (7,)) is not None
    assert refused(Ended(7, "", 1.0), (7,)) is not None


@pytest.mark.parametrize("way", CONTENT)
def test_each_damage_changes_the_file(way, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 12}\n{"a": 34}\n{"a": 56}\n')
    before = path.read_bytes()
    assert damage(path, way, None, random.Random(0))
    assert path.read_bytes() != before


WRITER = """
import sys
sys.path[:0] = [{scripts!r}]
import torture_preload
torture_preload.arm(torture_preload.{arm!r})
for name in ("a", "b", "c"):
    with open({folder!r} + name, "wb", buffering=0) as file:
        file.write(b"12345678")
"""


@pytest.mark.parametrize(
    ("how", "code", "left"),
    [
        ({"kinds": torture_preload.WRITE, "at": 2, "action": torture_preload.KILL}, -9, {"a": 8, "b": 0}),
        ({"kinds": torture_preload.WRITE, "at": 2, "action": torture_preload.TEAR}, -9, {"a": 8, "b": 4}),
        ({"kinds": torture_preload.OPEN, "at": 3, "action": torture_preload.KILL}, -9, {"a": 8, "b": 8}),
        ({"kinds": torture_preload.WRITE, "at": 3, "action": torture_preload.FAIL, "error": errno.EIO}, 1,
         {"a": 8, "b": 8, "c": 0}),
    ],
)  # fmt: skip
def test_the_library_strikes_at_the_call_it_is_told(how, code, left, tmp_path):
    library = torture_preload.build(tmp_path)
    if library is None:
        pytest.skip("no C compiler")
    folder = tmp_path / "written"
    folder.mkdir()
    text = WRITER.format(scripts=str(ROOT / "scripts"), arm=Arm(f"{folder}/", **how), folder=f"{folder}/")
    environment = {**os.environ, "LD_PRELOAD": str(library)}
    done = subprocess.run([sys.executable, "-c", text], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == code, done.stderr
    assert {path.name: path.stat().st_size for path in folder.iterdir()} == left


@pytest.mark.slow
def test_two_minutes_of_torture_find_nothing(tmp_path):
    command = [sys.executable, "scripts/torture.py", "--minutes", "2", "--folder", tmp_path]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=580)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
