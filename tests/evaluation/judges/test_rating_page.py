"""The rating sheet used for real in Chromium: rated with mouse and keyboard, reloaded, exported, read back."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from browser import Browser

from dpo.config.judges import HumanJudge
from dpo.data.pair import Message
from dpo.evaluation.judges.human.judge import HumanPairJudge, build
from dpo.evaluation.judges.human.ratings import Rating, read_ratings
from dpo.evaluation.judges.human.sheet import Sheet, read_sheets
from dpo.evaluation.judges.interface import PairItem

EVIL = (
    "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">=HYPERLINK(1)\u202e\x1b[31m"
)
ITEMS = [
    PairItem("0", (Message("user", "What is a cat?"),), "A small animal.\n\nIt purrs.", "no idea " * 150, "0"),
    PairItem("1", (Message("user", "Say hi."),), EVIL, "=1+1", "1"),
    PairItem("2", (Message("system", "Be brief."), Message("user", "Why?")), "Because.", "", "2"),
]


@pytest.fixture
def sheet(tmp_path: Path) -> Sheet:
    judge = build(HumanJudge(str(tmp_path / "human"), 0))[0]
    assert isinstance(judge, HumanPairJudge)
    assert all(v.score is None for batch in judge.compare(ITEMS) for v in batch)
    (made,) = read_sheets(tmp_path / "human")
    return made


def _rate(browser: Browser, row: int, first: int, second: int, preference: str, comment: str) -> None:
    browser.click(f'input[name="helpfulness_1-{row}"][value="{first}"]')
    browser.click(f'input[name="helpfulness_2-{row}"][value="{second}"]')
    browser.click(f'input[name="preference-{row}"][value="{preference}"]')
    if comment:
        browser.type(f'textarea[name="comment-{row}"]', comment)


def _count(browser: Browser) -> str:
    return str(browser.js("document.getElementById('count').textContent"))


def test_ratings_survive_a_reload_and_come_back_as_they_were_given(chromium: str, sheet: Sheet, tmp_path: Path) -> None:
    page = sheet.for_raters / "rating.html"
    with Browser(chromium, tmp_path / "profile", sheet.ratings) as browser:
        browser.open(page)
        assert _count(browser) == "0 of 3 rated"
        _rate(browser, 1, 7, 10, "2", 'good, "quoted"\nand ünïcode')
        browser.click("#next")
        _rate(browser, 2, 1, 2, "tie", "=cmd|' /C calc'!A0")
        assert _count(browser) == "2 of 3 rated"
        # Without a name nothing is exported, and the page says why.
        browser.click("#json")
        assert "name first" in str(browser.js("document.getElementById('said').textContent"))
        browser.type("#rater", "Ann Bee")
        browser.open(page)
        assert _count(browser) == "2 of 3 rated"
        assert browser.js("document.getElementById('rater').value") == "Ann Bee"
        # Where the rater was: at row 2. Then on to what is missing, half of it.
        assert browser.js("document.querySelector('section.row:not([hidden])').dataset.row") == "2"
        browser.click("#open")
        browser.click('input[name="helpfulness_1-3"][value="4"]')
        assert _count(browser) == "2 of 3 rated"
        exported = browser.download("#json")
    assert exported.name == f"ratings-{sheet.name}-ann-bee.json"
    want = [
        Rating("Ann Bee", 1, 7, 10, 0.0, 'good, "quoted"\nand ünïcode'),
        Rating("Ann Bee", 2, 1, 2, 0.5, "=cmd|' /C calc'!A0"),
        Rating("Ann Bee", 3, 4, None, None, ""),
    ]
    assert read_ratings(sheet) == want
    # Another browser goes on from the file; its CSV says the same, with formulas made harmless.
    with Browser(chromium, tmp_path / "other", tmp_path / "csv") as browser:
        browser.open(page)
        root = browser.send("DOM.getDocument")["root"]["nodeId"]
        load = browser.send("DOM.querySelector", nodeId=root, selector="#load")["nodeId"]
        browser.send("DOM.setFileInputFiles", nodeId=load, files=[str(exported)])
        browser.js("new Promise(done => setTimeout(done, 300))")
        assert _count(browser) == "2 of 3 rated"
        table = browser.download("#csv")
    exported.unlink()
    table.rename(sheet.ratings / table.name)
    assert read_ratings(sheet) == [
        want[0],
        Rating("Ann Bee", 2, 1, 2, 0.5, "'=cmd|' /C calc'!A0"),
        want[2],
    ]


def test_nothing_an_answer_holds_runs_and_nothing_is_fetched(chromium: str, sheet: Sheet, tmp_path: Path) -> None:
    page = sheet.for_raters / "rating.html"
    with Browser(chromium, tmp_path / "profile", tmp_path / "files") as browser:
        browser.open(page)
        row = next(r.row for r in sheet.rows if r.group == "1")
        for _ in range(row - 1):
            browser.click("#next")
        shown = str(browser.js("document.querySelector('section.row:not([hidden]) .sides').innerText"))
        assert "<script>document.title='owned'</script>" in shown
        assert "\u202e" not in shown
        assert browser.js("document.title") == f"Rating sheet {sheet.name}"
        assert browser.js("document.images.length + document.scripts.length") == 1
        # Even a script put there by force is refused.
        browser.js("document.body.append(Object.assign(document.createElement('script'), {text: 'document.title=1'}))")
        assert browser.js("document.title") == f"Rating sheet {sheet.name}"
        asked = [e["params"]["request"]["url"] for e in browser.events if e["method"] == "Network.requestWillBeSent"]
        assert {url for url in asked if not url.startswith("file://")} == set()
        assert not [e for e in browser.events if e["method"] == "Runtime.exceptionThrown"]
    text = page.read_text()
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', text)
    assert policy is not None
    assert "unsafe" not in policy[1]
    assert policy[1].startswith("default-src &#39;none&#39;; script-src &#39;sha256-")
    table = (sheet.for_raters / "rating.csv").read_text()
    assert ",'=1+1," in table


def test_a_phone_shows_a_row_without_sideways_scrolling(chromium: str, sheet: Sheet, tmp_path: Path) -> None:
    with Browser(chromium, tmp_path / "profile", tmp_path / "files", 390, 844) as browser:
        browser.open(sheet.for_raters / "rating.html")
        browser.click(".guide summary")
        for row in (1, 2, 3):
            assert browser.js("document.documentElement.scrollWidth") <= 390
            # Fingers need room: every point is at least 40 by 40 pixels, and none is under the bars.
            smallest = browser.js(
                f"Math.min(...[...document.querySelectorAll('[data-row=\"{row}\"] .points span')]"
                ".flatMap(e => [e.offsetWidth, e.offsetHeight]))"
            )
            assert smallest >= 40
            _rate(browser, row, 3, 8, "1", "fine")
            if row < 3:
                browser.click("#next")
        assert _count(browser) == "3 of 3 rated"
