"""What the README shows works: `bash run` blocks run for real on small inputs, `bash compose` blocks compose."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import tiny

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(kind: str) -> list[str]:
    found = re.findall(rf"```bash {kind}\n(.*?)```", README, re.DOTALL)
    return [line for block in found for line in block.strip().splitlines()]


@pytest.mark.parametrize("command", blocks("run"))
def test_a_command_runs(command, tmp_path):
    words = shlex.split(command)
    assert words[:2] == ["python", "-m"]
    if "model.path=FOLDER" in words:
        tiny.make_model(tmp_path / "FOLDER")
        tiny.make_pairs(tmp_path / "pairs.jsonl")
    code, output = tiny.run(words[2].removeprefix("dpo."), words[3:], tmp_path)
    assert code == 0, output
    assert output.strip()


@pytest.mark.parametrize("command", blocks("compose"))
def test_a_command_composes(command, compose):
    words = shlex.split(command)
    assert words[:3] == ["python", "-m", "dpo.train"]
    overrides = [word.split(",")[0] for word in words[3:] if word != "-m"]
    config = compose(*overrides)
    for override in overrides:
        key, _, value = override.partition("=")
        if "." in key:
            group, name = key.split(".")
            assert str(getattr(getattr(config, group), name)) in (value, str(float(value)))


def test_the_options_in_the_table_are_the_options_there_are():
    from dpo.config.folder import options

    groups = README[README.index("## The groups") : README.index("### Beta")]
    for group, cell in re.findall(r"^\| `(\w+)` \| ([^|]+) \|", groups, re.MULTILINE):
        named = {re.sub(r"\(.*?\)", "", word).strip() for word in re.sub(r"\([^)]*\)", "", cell).split(",")}
        assert named == set(options(group)), group


def test_both_commands_are_first():
    assert (
        README.index("bash scripts/quickstart.sh") < README.index("bash scripts/test.sh") < README.index("## Commands")
    )
