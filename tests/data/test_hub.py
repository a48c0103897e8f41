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
from urllib.parse import unquote

import pytest
from data_options import REPOSITORY
from real_rows import hub_repositories, rows_of

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
# What the server holds: files by (repository, revision).
REPOSITORIES: dict[tuple[str, str], dict[str, bytes]] = {(REPO, "main"): FILES}


def chosen(first: int, count: int, **more: Any) -> bytes:
    lines = [{"ask": f"Question {i}?", "good": f"good {i}", "bad": "bad", **more} for i in range(first, first + count)]
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


# Any dataset's: configurations and splits by its card, or by the names of folders and files alone.
CARDED, NAMED = "org/carded", "org/named"
REPOSITORIES[CARDED, "main"] = {
    "README.md": b"a card",
    "data/small/train_sft-00000-of-00001.jsonl": chosen(500, 3),
    "data/small/train_prefs-00000-of-00002.jsonl": chosen(0, 20),
    "data/small/train_prefs-00001-of-00002.jsonl": chosen(20, 20),
    "data/small/test_prefs-00000-of-00001.jsonl": chosen(100, 5),
    "data/large/all.jsonl": chosen(200, 50),
}
REPOSITORIES[NAMED, "v2"] = {
    "README.md": b"a card",
    "english/train.jsonl": chosen(0, 30),
    "english/validation.jsonl": chosen(40, 4),
    "french/train.jsonl": chosen(100, 30),
}
CARDS: dict[str, Any] = {
    CARDED: {
        "license": "cc-by-4.0",
        "configs": [
            {"config_name": "small", "data_files": [
                {"split": name, "path": f"data/small/{name}-*"} for name in ("train_sft", "train_prefs", "test_prefs")
            ]},
            {"config_name": "large", "data_files": "data/large/*.jsonl"},
        ],
    },
    NAMED: {"license": ["mit", "apache-2.0"]},
}  # fmt: skip


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
        path = unquote(self.path.partition("?")[0])
        if "stalled" in path:
            self.stall.wait(60)
            return
        for (repository, revision), files in REPOSITORIES.items():
            dataset = f"/api/datasets/{repository}"
            if path in (f"{dataset}/revision/{revision}", f"{dataset}/revision/{COMMIT}"):
                info = {"id": repository, "sha": COMMIT, "siblings": [{"rfilename": name} for name in files]}
                info |= {"cardData": CARDS[repository]} if repository in CARDS else {}
                return self._send(json.dumps(info).encode(), "application/json", body)
            if path.startswith(f"{dataset}/tree/"):
                tree = [{"type": "file", "path": n, "size": len(c), "oid": hashlib.sha1(c).hexdigest()}  # noqa: S324
                        for n, c in files.items()]  # fmt: skip
                return self._send(json.dumps(tree).encode(), "application/json", body)
            if path.startswith(prefix := f"/datasets/{repository}/resolve/{COMMIT}/"):
                return self._send(files[path.removeprefix(prefix)], "application/octet-stream", body)
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
from data_options import dataset, load_splits
from dpo.errors import DpoError
for option, values in json.loads(sys.argv[1]):
    start = time.monotonic()
    try:
        splits = load_splits(dataset(option, **{"dev_fraction": 0.0, **values}))
        parts = {name: getattr(splits, name) for name in ("train", "dev", "test")}
        print(json.dumps({
            "rows": splits.report.rows, "revision": splits.report.revision,
            "licence": splits.report.licence, "refused": splits.report.refused,
            "pairs": {n: [[p.id, p.chosen, p.rejected, p.strength, p.prompt[-1].content] for p in part]
                      for n, part in parts.items()}}))
    except DpoError as error:
        print(json.dumps({"code": error.exit_code, "lines": str(error).splitlines(), "took": time.monotonic() - start}))
"""


def load(endpoint: str, cache: Path, **values: Any) -> dict[str, Any]:
    offline = values.pop("offline", "0")
    return load_all(endpoint, cache, [("hh_rlhf", values)], offline)[0]


def load_all(
    endpoint: str, cache: Path, wanted: list[tuple[str, dict[str, Any]]], offline: str = "0"
) -> list[dict[str, Any]]:
    """What `load_splits` gives for each (option, values), in one process that knows only this hub."""
    environment = {
        **os.environ,
        "HF_ENDPOINT": endpoint,
        "HF_HUB_OFFLINE": offline,
        "HF_HOME": str(cache / "hub"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "DPO_CACHE": str(cache / "dpo"),
        "PYTHONPATH": f"{REPOSITORY / 'src'}:{REPOSITORY / 'tests' / 'kit'}",
        "NO_PROXY": "127.0.0.1",
    }
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(wanted)], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_rows_come_from_the_hub_and_then_without_it(hub: str, tmp_path: Path) -> None:
    everything = load(hub, tmp_path)
    assert (everything["rows"], everything["revision"]) == ({"test": 5, "train": 50}, COMMIT)
    assert everything["pairs"]["train"][-1][0] == "hh_rlhf:train:49"
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


COLUMNS = {"prompt": "ask", "chosen": "good", "rejected": "bad"}


def test_any_dataset_is_read_by_its_card_and_its_columns(hub: str, tmp_path: Path) -> None:
    small = {"id": CARDED, "config": "small", "columns": COLUMNS, "test_fraction": 0.0}
    named = {"id": NAMED, "revision": "v2", "config": "english", "columns": COLUMNS, "test_fraction": 0.0}
    asked = [("hub", values) for values in (
        {**small, "split": "train_prefs", "dev_split": "train_sft"},
        {**small, "split": "test_prefs", "test_split": "train_sft"},
        {**small, "config": "large"}, named, {**named, "config": "french"},
    )]  # fmt: skip
    got = load_all(hub, tmp_path, asked)
    assert [one["rows"] for one in got] == [
        {"train": 40, "dev": 3, "test": 5}, {"train": 5, "test": 3}, {"train": 50},
        {"train": 30, "dev": 4}, {"train": 30},
    ]  # fmt: skip
    assert [one["licence"] for one in got] == ["cc-by-4.0"] * 3 + ["mit, apache-2.0"] * 2
    assert {one["revision"] for one in got} == {COMMIT}
    assert got[0]["pairs"]["train"][20] == ["hub:train:20", "good 20", "bad", 1.0, "Question 20?"]
    assert load_all(hub, tmp_path, asked, offline="1") == got
    # What nobody asked for was not fetched.
    assert load_all(hub, tmp_path / "other", asked[2:3])[0]["rows"] == {"train": 50}
    assert len(list((tmp_path / "other" / "hub").rglob("*.jsonl"))) == 1


def test_what_of_a_dataset_is_meant_is_asked_and_not_guessed(hub: str, tmp_path: Path) -> None:
    small = {"id": CARDED, "config": "small", "columns": COLUMNS}
    asked = {
        "dataset.config: org/carded has several; name one of small, large": {"id": CARDED, "columns": COLUMNS},
        "dataset.config=smal: org/carded has no such configuration; nearest: small": {**small, "config": "smal"},
        "dataset.split: org/carded has several splits to train on; name one of train_prefs, train_sft": small,
        "dataset.split=train_pref: org/carded has no such split; nearest: train_prefs": {
            **small,
            "split": "train_pref",
        },
        "org/named@v2: no pair to train on": {"id": NAMED, "revision": "v2", "config": "french"},
    }
    got = load_all(hub, tmp_path, [("hub", values) for values in asked.values()])
    assert [one["lines"][0] for one in got] == list(asked)
    assert [one["code"] for one in got] == [2, 2, 2, 2, 3]
    assert "columns are ask, good, bad; name yours, as dataset.columns={" in got[-1]["lines"][-1]


def test_what_lies_in_the_hub_clients_own_cache_serves_without_a_hub(tmp_path: Path) -> None:
    cache = tmp_path / "hub" / "hub" / "datasets--org--mine"
    (snapshot := cache / "snapshots" / COMMIT).mkdir(parents=True)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(COMMIT)
    (snapshot / "train.jsonl").write_bytes(chosen(0, 12))
    (snapshot / "README.md").write_text("---\nlicense: mit\n---\n")
    (got,) = load_all("http://127.0.0.1:9", tmp_path, [("hub", {"id": "org/mine", "columns": COLUMNS})], offline="1")
    assert (sum(got["rows"].values()), got["revision"], got["licence"]) == (12, COMMIT, "mit")


def test_no_network_is_an_error_that_names_the_way_out(tmp_path: Path) -> None:
    got = load("http://127.0.0.1:9", tmp_path)
    assert got["code"] == 8
    assert got["lines"][0].startswith(f"{REPO}: the hub did not answer")
    assert "dataset.path" in got["lines"][-1]


def test_every_source_reads_its_repository_as_it_lies_on_the_hub(
    hub: str, real_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real rows under the names, in the formats and at the revisions of the hub; read again without it."""
    repositories = hub_repositories(real_data)
    monkeypatch.setitem(globals(), "REPOSITORIES", {key: files for key, (files, _, _) in repositories.items()})
    asked = [(option, values) for _, option, values in repositories.values()]
    got = load_all(hub, tmp_path, asked)
    for ((repository, revision), (files, option, values)), one in zip(repositories.items(), got, strict=True):
        assert one.get("revision") == COMMIT, one
        expected = rows_of(option, files, values)
        kept = {row[0]: row[1:] for part in one["pairs"].values() for row in part}
        refused = {row_id for ids in one["refused"].values() for row_id in ids}
        assert not kept.keys() & refused
        assert sum(one["rows"].values()) == len(kept) + len(refused) == len(expected)
        # Which answer is better, how surely, and after what question, read off the raw rows by other code.
        assert len(kept) >= 10, repository
        for row_id, row in kept.items():
            *texts, strength, question = row
            assert [*texts, pytest.approx(strength), question] == expected[row_id], row_id
        assert any(f"/datasets/{repository}/revision/{revision}" in unquote(path) for path in FakeHub.asked)
    assert load_all(hub, tmp_path, asked, offline="1") == got
