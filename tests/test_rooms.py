"""The rooms of the house in their order: what belongs where, what may import what, and how large any of it may be.

Read from the source alone: an import inside a function counts as one at the top does.
"""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src"
# From the ground up; the first three are files. The verbs, the modules beside these folders, stand on top.
ROOMS = (
    "errors signals streams config statistics records caches data modeling losses engine generation distributed "
    "training planning pages evaluation conversation release sweeps synthesis diagnosis command"
).split()
WITHOUT_TORCH = ("config", "records", "pages", "sweeps")
FOLDER_LINES, FILE_LINES = 2500, 300

FILES = {
    ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(SOURCE.glob("dpo/**/*.py"))
}
FOLDERS = sorted({path.parent for path in FILES.values()} - {SOURCE / "dpo"})


def imports(tree: ast.AST) -> Iterator[str]:
    """Modules that are imported anywhere in a tree, dotted."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute here"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full in FILES else str(node.module)


def at_import(tree: ast.Module) -> ast.Module:
    """Without what functions do when they are called, and what only a type checker sees."""
    kept: list[ast.stmt] = []
    for node in tree.body:
        checked = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        if not checked and not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            kept.append(node)
    return ast.Module(kept, [])


def room(module: str) -> str | None:
    """The room a module of ours is in; None for a verb."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in ROOMS else None


def test_every_folder_is_a_room() -> None:
    assert {path.name for path in FOLDERS if path.parent == SOURCE / "dpo"} == set(ROOMS[3:])


def test_no_room_imports_one_above_it() -> None:
    upward = []
    for module, path in FILES.items():
        own = room(module)
        if own is None:
            continue
        for target in imports(ast.parse(path.read_text(encoding="utf-8"))):
            if not target.startswith("dpo."):
                continue
            other = room(target)
            if other is None or ROOMS.index(other) > ROOMS.index(own):
                upward.append(f"{module} imports {target}")
    assert upward == []


@pytest.mark.parametrize("name", WITHOUT_TORCH)
def test_it_is_there_without_torch(name: str) -> None:
    """Neither its modules nor what they import in turn load torch by being imported."""
    reached = [module for module in FILES if room(module) == name]
    seen, found = set(reached), []
    while reached:
        module = reached.pop()
        for target in imports(at_import(ast.parse(FILES[module].read_text(encoding="utf-8")))):
            if target.split(".")[0] in ("torch", "transformers", "trl", "peft", "accelerate", "bitsandbytes"):
                found.append(f"{module} imports {target}")
            elif target in FILES and target not in seen:
                seen.add(target)
                reached.append(target)
    assert found == []


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: str(path.relative_to(SOURCE / "dpo")))
def test_a_room_says_what_belongs_in_it_and_stays_small(folder: Path) -> None:
    said = ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8"))) or ""
    assert re.fullmatch(r"[A-Z][^\n]*?[^.\n]\.", said.split("\n\n")[0]), "one sentence first"
    assert ". " not in said.split("\n\n")[0], "one sentence first"
    lines = sum(len(path.read_text(encoding="utf-8").splitlines()) for path in folder.glob("*.py"))
    assert lines <= FOLDER_LINES


@pytest.mark.parametrize("path", FILES.values(), ids=FILES.keys())
def test_a_file_holds_one_concern(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= FILE_LINES


def test_an_installation_has_every_folder() -> None:
    stated = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["packages"]
    there = {".".join(path.parent.relative_to(SOURCE).parts) for path in SOURCE.glob("*/**/*.py")}
    assert sorted(stated) == sorted(there | {"dpo.conf"})


def test_the_tests_of_a_room_lie_under_its_name() -> None:
    """A folder of tests is a room, or says what it is: what tests are built from, what needs a GPU, the scripts'."""
    tests = Path(__file__).parent
    own = {"kit", "gpu", "scripts"}
    for folder in sorted(path for path in tests.rglob("*") if path.is_dir() and path.name != "__pycache__"):
        name = folder.relative_to(tests)
        assert str(name) in own or (ROOT / "src" / "dpo" / name).is_dir(), f"tests/{name} is the name of no room"
