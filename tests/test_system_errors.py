"""Whatever the system refuses is one to three lines that name the file, and the code that fits."""

from __future__ import annotations

import errno
import os
import resource
import signal
from pathlib import Path

import pytest
import tiny
import torch

from dpo.caches.entry import get_or_build
from dpo.caches.folder import cache_folder
from dpo.config.failures import translate
from dpo.config.roots import outputs_root
from dpo.errors import CheckpointError, DpoError, is_disk_full
from dpo.records.files import naming, write_text

REFUSALS = (
    "EIO",
    "EROFS",
    "EACCES",
    "EPERM",
    "EMFILE",
    "ENFILE",
    "ENOTDIR",
    "EISDIR",
    "ENAMETOOLONG",
    "ELOOP",
    "ENOLCK",
)


def said(error: BaseException) -> DpoError:
    known = translate(error)
    assert known is not None, repr(error)
    assert 1 <= len(str(known).splitlines()) <= 3
    return known


@pytest.mark.parametrize("name", REFUSALS)
def test_a_refusal_is_a_line_with_the_file_and_the_code_of_where_it_lies(name, tmp_path, monkeypatch):
    monkeypatch.setenv("DPO_CACHE", str(tmp_path / "cache"))
    run = tmp_path / "run"
    run.mkdir()
    (run / "run.json").write_text("{}")
    places = {run / "checkpoints" / "x": 4, tmp_path / "cache" / "data" / "x": 4, tmp_path / "pairs.jsonl": 2}
    for place, code in places.items():
        known = said(OSError(getattr(errno, name), os.strerror(getattr(errno, name)), str(place)))
        assert str(place) in str(known)
        assert known.exit_code == code


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_no_room_is_7_whoever_says_it(number):
    class SafetensorError(Exception):
        pass

    text = f"I/O error: {os.strerror(number)} (os error {number})"
    for error in (OSError(number, os.strerror(number), "x"), SafetensorError(text), RuntimeError(text)):
        assert said(error).exit_code == 7
        assert is_disk_full(error)


@pytest.fixture
def little_room():
    """Files of this process may hold 64 KB: a write beyond is refused, short of it cut, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (65536, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


def test_torchs_own_word_for_a_short_write_is_7(tmp_path, little_room):
    with pytest.raises(RuntimeError) as caught:
        torch.save({"x": torch.randn(100_000)}, tmp_path / "optimizer.pt")
    assert said(caught.value).exit_code == 7


def test_errors_that_name_no_file_get_one(tmp_path):
    with pytest.raises(OSError, match=r"run\.json") as caught, naming(tmp_path / "run.json"):
        raise OSError(errno.EIO, "Input/output error")
    assert "check it" in str(said(caught.value))


def test_a_write_that_failed_leaves_nothing_beside_the_old_file(tmp_path):
    path = tmp_path / "run.json"
    path.write_text("old")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "\udc80")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["run.json"]


def test_our_own_faults_keep_their_traceback():
    for error in (
        KeyError("x"),
        ValueError("x"),
        RuntimeError("x"),
        OSError("a hub without a number"),
        ConnectionResetError(104, "x"),
    ):
        assert translate(error) is None


@pytest.mark.parametrize("root", ["/proc/x", "file"])
def test_a_cache_that_cannot_be_made_names_the_variable(root, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DPO_CACHE", str(tmp_path / root))
    with pytest.raises(CheckpointError, match="DPO_CACHE"):
        cache_folder("data")


def test_cache_entries_and_locks_of_another_kind(tmp_path, monkeypatch):
    monkeypatch.setenv("DPO_CACHE", str(tmp_path))
    said_lines: list[str] = []

    def build(folder: Path) -> None:
        (folder / "x").write_text("x")

    (tmp_path / "key").write_text("a file")
    entry, there = get_or_build(tmp_path, "key", build, said_lines.append)
    assert not there
    assert "damaged" in said_lines[0]
    (entry / "manifest.json").unlink()
    (entry / "manifest.json").mkdir()
    assert not get_or_build(tmp_path, "key", build, said_lines.append)[1]
    (tmp_path / "other.lock").mkdir()
    with pytest.raises(CheckpointError, match=r"other\.lock") as caught:
        get_or_build(tmp_path, "other", build, said_lines.append)
    known = said(caught.value)
    assert known.exit_code == 4
    assert "DPO_CACHE" in str(known)


def test_outputs_that_cannot_be_written_are_named_with_the_way_out(tmp_path):
    (tmp_path / "outputs").write_text("a file")
    model, pairs = tiny.make_model(tmp_path / "model"), tiny.make_pairs(tmp_path / "pairs.jsonl")
    code, output = tiny.run("train", tiny.arguments(model, pairs), tmp_path)
    assert code == 2, output
    assert "DPO_OUTPUTS" in output
    assert "Traceback" not in output


def test_a_tilde_in_outputs_is_the_home(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("DPO_OUTPUTS", "~/runs")
    assert outputs_root() == tmp_path / "runs"


def test_a_home_that_nobody_has_is_a_line():
    with pytest.raises(RuntimeError) as caught:
        Path("~nobody-of-this-name/run").expanduser()
    assert said(caught.value).exit_code == 2
