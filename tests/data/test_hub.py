"""The hub, spoken to for real: a small server on this machine answers as it does, stalls, or is not there."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
from data_options import REPOSITORY

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPO = "Anthropic/hh-rlhf"


def transcript(index: int, answer: str) -> str:
    return f"\n\nHuman: Question {index}?\n\nAssistant: {answer}"


def rows(first: int, count: int) -> bytes:
    lines = [
        {"chosen": transcript(i, f"good {i}"), "rejected": transcript(i, "bad")} for i in range(first, first + count)
    ]
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


FILES = {
    "README.md": b"a card",
    "harmless-base/train.jsonl": rows(0, 40),
    "harmless-base/test.jsonl": rows(100, 5),
    "helpful-base/train.jsonl": rows(200, 10),
    "red-team-attempts/red_team_attempts.jsonl": b'{"transcript": "x"}\n',
}


REFUSALS = {"gated": "GatedRepo", "norevision": "RevisionNotFound"}


class FakeHub(BaseHTTPRequestHandler):
    """The four requests a download makes: what a revision is, its files, the head of a file, its bytes."""

    asked: ClassVar[list[str]] = []
    stall: ClassVar[threading.Event] = threading.Event()

    def do_GET(self) -> None:
        self._answer(True)

    def do_HEAD(self) -> None:
        self._answer(False)

    def _answer(self, body: bool) -> None:
        self.asked.append(self.path)
        path = self.path.partition("?")[0]
        if "stalled" in path:
            self.stall.wait(60)
            return
        if path.startswith((f"/api/datasets/{REPO}/revision/main", f"/api/datasets/{REPO}/revision/{COMMIT}")):
            info = {"id": REPO, "sha": COMMIT, "siblings": [{"rfilename": name} for name in FILES]}
            self._send(json.dumps(info).encode(), "application/json", body)
        elif path.startswith(f"/api/datasets/{REPO}/tree/"):
            tree = [{"type": "file", "path": n, "size": len(c), "oid": hashlib.sha1(c).hexdigest()}  # noqa: S324
                    for n, c in FILES.items()]  # fmt: skip
            self._send(json.dumps(tree).encode(), "application/json", body)
        elif path.startswith(prefix := f"/datasets/{REPO}/resolve/{COMMIT}/"):
            self._send(FILES[path.removeprefix(prefix)], "application/octet-stream", body)
        else:
            code = next((c for name, c in REFUSALS.items() if name in path), "RepoNotFound")
            self.send_response(403 if code == "GatedRepo" else 404)
            self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

    def _send(self, content: bytes, kind: str, body: bool) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[str]:
    FakeHub.asked.clear()
    FakeHub.stall.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), FakeHub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    FakeHub.stall.set()
    server.shutdown()
    server.server_close()


SCRIPT = """
import json, sys, time
from data_options import dataset
from dpo.data.load import load_splits
from dpo.errors import DpoError
start = time.monotonic()
try:
    splits = load_splits(dataset("hh_rlhf", dev_fraction=0.0, **json.loads(sys.argv[1])))
    print(json.dumps({"rows": splits.report.rows, "revision": splits.report.revision, "ids": [splits.train[-1].id]}))
except DpoError as error:
    print(json.dumps({"code": error.exit_code, "lines": str(error).splitlines(), "took": time.monotonic() - start}))
"""


def load(endpoint: str, cache: Path, **values: Any) -> dict[str, Any]:
    environment = {
        **os.environ,
        "HF_ENDPOINT": endpoint,
        "HF_HUB_OFFLINE": values.pop("offline", "0"),
        "HF_HOME": str(cache / "hub"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "DPO_CACHE": str(cache / "dpo"),
        "PYTHONPATH": f"{REPOSITORY / 'src'}:{Path(__file__).parent}",
        "NO_PROXY": "127.0.0.1",
    }
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(values)], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_rows_come_from_the_hub_and_then_without_it(hub: str, tmp_path: Path) -> None:
    everything = {"rows": {"test": 5, "train": 50}, "revision": COMMIT, "ids": ["hh_rlhf:train:49"]}
    assert load(hub, tmp_path) == everything
    assert not any("red-team" in path for path in FakeHub.asked if "/resolve/" in path)
    for offline, endpoint in (("1", hub), ("0", "http://127.0.0.1:9")):
        FakeHub.asked.clear()
        assert load(endpoint, tmp_path, offline=offline) == everything
        assert not FakeHub.asked


def test_a_part_that_was_not_downloaded_is_not_there_offline(hub: str, tmp_path: Path) -> None:
    assert load(hub, tmp_path, subset="harmless-base")["rows"] == {"test": 5, "train": 40}
    assert load(hub, tmp_path, subset="helpful-base", offline="1")["code"] == 8
    assert load(hub, tmp_path, subset="harmless-base", offline="1")["rows"] == {"test": 5, "train": 40}


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"hub": "some/gated"}, "some/gated: gated; accept its terms at"),
        ({"hub": "some/nothing"}, "some/nothing: no such dataset on the hub"),
        ({"hub": "some/norevision"}, "some/norevision: no revision main"),
        ({"hub": "some/norevision", "revision": "v9"}, "some/norevision: no revision v9"),
        ({"hub": "some/stalled"}, "some/stalled: the hub did not answer"),
    ],
)
def test_what_the_hub_refuses_takes_lines_not_a_traceback(
    values: dict[str, str], line: str, hub: str, tmp_path: Path
) -> None:
    got = load(hub, tmp_path, **values)
    assert got["code"] == 8
    assert got["lines"][0].startswith(line)
    assert len(got["lines"]) <= 3


def test_no_network_is_an_error_that_names_the_way_out(tmp_path: Path) -> None:
    got = load("http://127.0.0.1:9", tmp_path)
    assert got["code"] == 8
    assert got["lines"][0].startswith(f"{REPO}: the hub did not answer")
    assert "dataset.path" in got["lines"][-1]
