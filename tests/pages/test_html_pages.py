"""Report pages in a real Chromium: no request leaves them, nothing a model wrote runs, everything is drawn."""

from __future__ import annotations

import re
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from hostile import write_run

from dpo.config.evaluation import Compare
from dpo.pages.html import embedded_json
from dpo.pages.run import write_run_page


@pytest.fixture
def visitors() -> Iterator[tuple[int, list[str]]]:
    """A local server and the paths it was asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server.server_port, asked
    server.shutdown()


def _open(chromium: str, page: Path, folder: Path, width: int = 1200) -> tuple[str, str]:
    """(DOM after scripts ran, console and errors) of a page in a fresh profile."""
    done = subprocess.run(
        [
            chromium, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}",
            "--disable-background-networking", "--no-first-run", "--virtual-time-budget=6000",
            "--enable-logging=stderr", f"--window-size={width},2000", "--dump-dom", f"file://{page}",
        ],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    console = "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)
    return done.stdout, console


def _body(dom: str) -> str:
    """The page's own markup: the DOM without script and style contents."""
    return re.sub(r"<(script|style)\b.*?</\1>", "", dom, flags=re.DOTALL)


def _check(dom: str, console: str, asked: list[str], title: str, samples: bool = True) -> None:
    assert asked == []
    assert console == ""
    assert f"<title>{title}</title>" in dom
    assert "owned</title>" not in dom
    markup = _body(dom)
    assert "<img" not in markup
    assert "<iframe" not in markup
    # Within a tag's own attributes; what stands between quotes is text.
    assert not re.search(r"<[^>]+\son\w+\s*=", re.sub(r'"[^"]*"', '""', markup))
    assert "javascript:" not in re.sub(r">[^<]*<", "><", markup)
    assert "&lt;script&gt;document.title='owned'&lt;/script&gt;" in markup
    assert "{{ 7*7 }}" in markup or not samples
    assert "\x1b" not in markup
    assert "\u202e" not in markup
    wanted = set(re.findall(r'<div id="((?:training|held-out|cost|level|kl|sweep)-[^"]+)"', markup))
    drawn = set(re.findall(r'<div id="([^"]+)" class="js-plotly-plot"', markup))
    assert wanted == drawn
    assert len(drawn) >= 3
    assert markup.count('class="main-svg"') >= len(drawn)


def test_a_hostile_run_is_shown_and_nothing_of_it_runs(
    chromium: str, visitors: tuple[int, list[str]], tmp_path: Path
) -> None:
    port, asked = visitors
    page = write_run_page(write_run(tmp_path / "runs" / "r1", port), "test", 12)
    dom, console = _open(chromium, page, tmp_path)
    _check(dom, console, asked, "runs/r1")
    assert "both falling is likelihood displacement" in dom


def test_a_hostile_comparison_is_shown_and_nothing_of_it_runs(
    chromium: str, visitors: tuple[int, list[str]], tmp_path: Path
) -> None:
    from dpo.compare import compare

    port, asked = visitors
    names = ("<img src=x onerror=document.title='owned'>", "{{ 7*7 }}<script>document.title='owned'<\u2215script>")
    runs = [str(write_run(tmp_path / name / "r", port, gain)) for name, gain in zip(names, (0.5, 0.0), strict=True)]
    out = compare(Compare(runs, "test", str(tmp_path / "out"), 300, 0.95, 0, 10))
    dom, console = _open(chromium, out / "report.html", tmp_path)
    _check(dom, console, asked, "2 runs and their baseline")
    assert "&lt;img src=x onerror=document.title='owned'&gt;" in dom


def test_a_phone_needs_no_sideways_scrolling(chromium: str, tmp_path: Path) -> None:
    assert wanted_width(chromium, write_run_page(write_run(tmp_path / "runs" / "r1"), "test", 4), tmp_path) <= 390


def wanted_width(chromium: str, page: Path, folder: Path) -> int:
    """CSS pixels a page needs in a window of a phone's width, 390."""
    # A page of ours frames the report at a phone's width and writes down how wide the report wants to be.
    frame = folder / "frame.html"
    frame.write_text(
        f'<iframe id="f" src="file://{page}" style="border:0;width:390px;height:3000px"></iframe><p id="wide"></p>'
        "<script>setTimeout(() => { const d = document.getElementById('f').contentDocument.documentElement;"
        "document.getElementById('wide').textContent = 'wants ' + d.scrollWidth; }, 3000)</script>"
    )
    done = subprocess.run(
        [
            chromium, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}",
            "--allow-file-access-from-files", "--virtual-time-budget=8000", "--dump-dom", f"file://{frame}",
        ],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    found = re.search(r"wants (\d+)", done.stdout)
    assert found is not None, done.stdout[-500:]
    return int(found[1])


def test_the_policy_allows_only_what_the_page_carries(tmp_path: Path) -> None:
    page = write_run_page(write_run(tmp_path / "runs" / "r1"), "test", 2).read_text()
    found = re.search(r'Content-Security-Policy" content="([^"]+)"', page)
    assert found is not None
    policy = found[1].replace("&#39;", "'")
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe-eval" not in policy
    scripts = policy.split(";")[1]
    assert "unsafe-inline" not in scripts
    assert scripts.count("sha256-") == 1
    assert "http" not in policy
    # Apart from the data block there is one script element, and nothing names another file.
    markup = re.sub(r"<script>.*?</script>", "<script></script>", page, count=0, flags=re.DOTALL)
    assert markup.count("<script>") == 1
    assert not re.search(r"<(script|link|img|iframe)[^>]+(src|href)=", markup)


@pytest.mark.parametrize("text", ["</script>", "<!--", "]]>", "&lt;", "\u2028", "a\x00b\x1b[31m"])
def test_no_text_ends_the_data_block(text: str) -> None:
    found = embedded_json({"a": text, text: [float("nan"), 1.5]})
    assert not set("<>&\u2028\x00\x1b") & set(found)
    assert "null, 1.5" in found


def test_an_unfinished_run_gets_a_page_too(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "early"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text('{"status": "failed", "reason": "no such file", "host": "h"}')
    page = write_run_page(folder, "test", 5).read_text()
    assert "No step has been logged yet" in page
    assert "python -m dpo.evaluate" in page
    assert "no such file" in page
