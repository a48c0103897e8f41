"""The two commands are safe to run twice: the scripts themselves, with a stand-in for the environment's Python."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Notes what it is asked; `python -m dpo.train` leaves a run directory, and a file named `broken` lets it fail.
PYTHON = """#!/usr/bin/env bash
echo "$*" >> "$CALLS"
[ ! -e broken ] || exit 1
case "$*" in "-m dpo.train "*)
  sleep 0.02; mkdir -p "${DPO_OUTPUTS:-outputs}/quickstart/$(wc -l < "$CALLS")" ;;
esac
"""


@pytest.fixture
def checkout(tmp_path) -> Path:
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts")
    for name in ("pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(PYTHON)
    python.chmod(0o755)
    return tmp_path


def quickstart(checkout: Path, *words: str, **environment: str) -> tuple[int, list[str]]:
    """(exit code, what its Python was asked in this call)."""
    calls = checkout / "calls"
    before = calls.read_text().splitlines() if calls.is_file() else []
    clean = {name: value for name, value in os.environ.items() if name != "DPO_OUTPUTS"}
    done = subprocess.run(
        ["bash", checkout / "scripts" / "quickstart.sh", *words], cwd="/", capture_output=True, text=True, timeout=60,
        env={**clean, "CALLS": str(calls), **environment},
    )  # fmt: skip
    return done.returncode, calls.read_text().splitlines()[len(before) :]


def test_the_second_run_installs_nothing_and_evaluates_its_own_run(checkout, tmp_path):
    code, asked = quickstart(checkout)
    assert code == 0
    assert [word for word in asked if "pip install" in word] == asked[:3]
    assert asked[3:] == ["-m dpo.train experiment=quickstart", "-m dpo.evaluate outputs/quickstart/4"]
    code, asked = quickstart(checkout, "seed=1")
    assert code == 0
    assert asked == ["-m dpo.train experiment=quickstart seed=1", "-m dpo.evaluate outputs/quickstart/6"]
    elsewhere = str(tmp_path / "elsewhere")
    code, asked = quickstart(checkout, DPO_OUTPUTS=elsewhere)
    assert code == 0
    assert asked[-1] == f"-m dpo.evaluate {elsewhere}/quickstart/8"


def test_other_pins_or_a_broken_installation_install_again(checkout):
    (checkout / "broken").touch()
    assert quickstart(checkout)[0] == 1
    (checkout / "broken").unlink()
    code, asked = quickstart(checkout)
    assert code == 0
    assert "pip install" in asked[0]
    with (checkout / "constraints.txt").open("a") as pins:
        pins.write("# other\n")
    code, asked = quickstart(checkout)
    assert code == 0
    assert "pip install" in asked[0]


def test_a_run_that_fails_is_not_evaluated(checkout):
    assert quickstart(checkout)[0] == 0
    (checkout / "broken").touch()
    code, asked = quickstart(checkout)
    assert code != 0
    assert asked == ["-m dpo.train experiment=quickstart"]
