"""`--help` lists a verb's own groups and keys with the comments of its YAML, a page of them or all."""

from __future__ import annotations

import importlib
import re
import sys

import pytest

from dpo.config.folder import options
from dpo.config.gaps import load_values
from dpo.config.help.page import conf_folder, help_page

VERBS = ["config", "prepare", "evaluate", "judge", "compare", "report", "status", "chat", "export", "dashboard"]


@pytest.mark.parametrize("name", VERBS)
def test_it_lists_this_verbs_groups_and_keys_and_no_others(name: str) -> None:
    page = help_page(name, whole=False)
    values = load_values(conf_folder() / f"{name}.yaml")
    groups = {key for entry in values["defaults"] if isinstance(entry, dict) for key in entry}
    for key in set(values) - {"defaults", "hydra"}:
        assert re.search(rf"[ ]{key}[=:.]", page)
    assert set(re.findall(r"^([a-z_]+): ", page, re.MULTILINE)) <= groups
    for group in {"model", "dataset", "dpo", "judge", "evaluation"} - groups:
        assert f"\n{group}: " not in page
    assert len(page.splitlines()) <= 110
    assert max(map(len, page.splitlines())) <= 150


def test_each_key_has_its_comment() -> None:
    page = help_page("config", whole=False)
    assert "  dpo.beta=0.1                      Low beta: a weak tether to the reference, large movement\n" in page
    assert "  name=run                          Runs land in outputs/<name>/<time>-<fingerprint>\n" in page
    assert all(option in page for option in options("dpo"))
    assert "  evaluation.top_k=50" not in page


def test_all_has_every_option_and_whole_comments() -> None:
    page = help_page("config", whole=True)
    assert "  dpo.discopop_tau=" in page
    assert "  dataset.min_ratio=2.0" in page
    assert "It also scales the rewards that are logged." in " ".join(page.split())


@pytest.mark.parametrize("word", ["--help", "-h"])
def test_the_verb_prints_it_and_ends_well(
    word: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["dpo.status", word])
    importlib.import_module("dpo.status").main()
    assert capsys.readouterr().out.strip() == help_page("status", whole=False).strip()
