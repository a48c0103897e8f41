"""What every page has: a list of its sections, verdicts above the numbers, both colour schemes, chips that speak."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hostile import write_run

from dpo.pages.html import environment, file_text, with_contents
from dpo.pages.run import write_run_page
from dpo.pages.words import verdict_word


def body(page: Path) -> str:
    """The page's own markup."""
    return re.sub(r"<(script|style)\b.*?</\1>", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)


def test_a_report_lists_its_sections_and_has_its_verdicts_above_the_numbers(tmp_path: Path) -> None:
    page = body(write_run_page(write_run(tmp_path / "run"), "test", 3))
    listed = re.findall(r'<a href="#(section-\d+)">([^<]+)</a>', page)
    assert listed == re.findall(r'<h2 id="(section-\d+)">([^<]+)</h2>', page)
    assert [title for _, title in listed][:2] == ["What was found", "Before and after"]
    assert page.index("<nav") < page.index('class="card finding') < page.index("<table")


def test_no_text_of_a_run_becomes_a_section() -> None:
    made = environment().from_string("{{ contents }}<h2>Ours</h2><p>{{ text }}</p>")
    shown = with_contents(made.render(contents="", text="<h2>Theirs</h2>"))
    assert shown.count("<h2") == 1


@pytest.mark.parametrize("name", ["page.css", "rating.css"])
def test_a_colour_is_named_in_both_schemes_and_used_by_its_name(name: str) -> None:
    style = file_text(name)
    light, dark = (set(re.findall(r"(--[\w-]+):", part)) for part in re.findall(r":root \{(.*?)\}", style, re.DOTALL))
    assert light == dark
    rest = re.sub(r":root \{.*?\}", "", style, flags=re.DOTALL)
    assert set(re.findall(r"var\((--[\w-]+)\)", rest)) == light
    # What a browser paints by itself follows too.
    assert "color-scheme: light dark" in style


@pytest.mark.parametrize(("verdict", "word"), [
    ({"outcome": 0.0, "passed": False, "reason": "brief", "score": 0.5}, "fails brief"),
    ({"outcome": 1.0, "passed": True, "reason": "", "score": 1.0}, "meets"),
    ({"outcome": 0.0, "passed": None, "reason": "", "score": 12.0}, "12.00"),
    ({"outcome": None, "passed": None, "reason": "no server", "score": None}, "undecided, no server"),
])  # fmt: skip
def test_a_chip_says_what_was_decided(verdict: dict[str, object], word: str) -> None:
    macro = environment().get_template("parts.html").module.answer
    chip = macro("after", {"answer": "text", "finished": True, "verdicts": {"rules": verdict}})
    assert f">rules: {word}</span>" in str(chip)
    assert ("badge fail" in str(chip)) == word.startswith("fails")
    assert verdict_word(verdict) == word
