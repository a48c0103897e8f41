"""The cache of token ids: hits when nothing that matters changed, rebuilds when a byte did, one builder at a time."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_options import dataset, load_splits
from tokenizer_families import chatml, llama3

from dpo.caches.entry import get_or_build
from dpo.data import parallel
from dpo.data.lengths import length_bias
from dpo.data.pair_file import PairFile
from dpo.data.prepare import Prepared, prepare
from dpo.data.review import write_pairs
from dpo.data.token_file import Selection
from dpo.data.tokens import Encoder
from dpo.errors import CheckpointError, DataError


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    lines = [
        {
            "prompt": f"Question {i} about {'tea ' * (i % 7)}?",
            "chosen": f"good {i}" * (1 + i % 3),
            "rejected": f"no {i}",
        }
        for i in range(80)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def prepared(rows: Path, cache: Path, tokenizer: Any = None, **values: Any) -> Prepared:
    return prepare(dataset("local", path=str(rows), **values), tokenizer or chatml(), cache)


def test_what_is_stored_is_what_the_encoder_gives(rows: Path, tmp_path: Path) -> None:
    got = prepared(rows, tmp_path / "cache")
    splits = load_splits(dataset("local", path=str(rows)))
    encoder = Encoder(chatml(), 1024)
    for name in ("train", "dev", "test"):
        pairs = list(getattr(splits, name))
        assert list(getattr(got, name)) == encoder.encode_batch(pairs)
        assert list(got.pairs[name]) == pairs
    assert len(got.train) > len(got.dev) > 0


def test_sequences_behave_like_lists_and_travel(rows: Path, tmp_path: Path) -> None:
    train = prepared(rows, tmp_path / "cache").train
    everything = list(train)
    assert train[-1] == everything[-1]
    assert train[2:9:3] == everything[2:9:3]
    with pytest.raises(IndexError):
        train[len(train)]
    assert list(pickle.loads(pickle.dumps(train))) == everything  # noqa: S301 - our own bytes, a moment old


def test_the_same_again_is_a_hit_wherever_the_rows_lie(rows: Path, tmp_path: Path) -> None:
    first = prepared(rows, tmp_path / "cache")
    moved = tmp_path / "elsewhere" / "other_name.jsonl"
    moved.parent.mkdir()
    shutil.copy(rows, moved)
    again = prepared(moved, tmp_path / "cache")
    assert (first.cached, again.cached) == (False, True)
    assert again.fingerprint == first.fingerprint
    assert again.report["origin"] == str(moved)


@pytest.mark.parametrize(
    "values", [{"max_length": 48}, {"limit": 30}, {"dev_fraction": 0.3}, {"on_bad": "drop"}, {"soft_labels": True}]
)
def test_other_settings_are_other_entries(values: dict[str, Any], rows: Path, tmp_path: Path) -> None:
    first = prepared(rows, tmp_path / "cache")
    other = prepared(rows, tmp_path / "cache", **values)
    assert not other.cached
    same = "on_bad" in values or "soft_labels" in values  # neither changes a pair of these rows
    assert (other.fingerprint == first.fingerprint) is same


def test_other_tokenizers_templates_and_rows_are_other_entries(rows: Path, tmp_path: Path) -> None:
    fingerprints = {prepared(rows, tmp_path / "cache").fingerprint}
    fingerprints.add(prepared(rows, tmp_path / "cache", llama3()).fingerprint)
    rows.write_text(rows.read_text().replace("good 5", "great 5"))
    changed = prepared(rows, tmp_path / "cache")
    assert not changed.cached
    fingerprints.add(changed.fingerprint)
    assert len(fingerprints) == 3


def test_the_fingerprint_covers_strengths(rows: Path, tmp_path: Path) -> None:
    lines = [
        {"prompt": f"Q{i}", "response_a": f"x{i}", "response_b": f"y{i}", "label": "tie" if i % 2 else "a"}
        for i in range(20)
    ]
    path = tmp_path / "soft.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    hard = path.with_name("hard.jsonl")
    hard.write_text(path.read_text().replace('"tie"', '"a"'))
    soft = prepared(path, tmp_path / "cache", soft_labels=True)
    sure = prepared(hard, tmp_path / "cache", soft_labels=True)
    assert {pair.strength for pair in soft.train} == {0.5, 1.0}
    assert [pair.chosen_ids for pair in soft.train] == [pair.chosen_ids for pair in sure.train]
    assert soft.fingerprint != sure.fingerprint
    assert soft.report["soft_labels"] == 10


@pytest.mark.parametrize("damage", ["flip", "cut", "delete", "manifest"])
@pytest.mark.parametrize("name", ["tokens.bin", "index.npz", "train.jsonl", "report.json"])
def test_a_damaged_entry_is_named_and_built_again(
    name: str, damage: str, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = prepared(rows, tmp_path / "cache")
    expected = list(first.train)
    path = first.folder / ("manifest.json" if damage == "manifest" else name)
    content = path.read_bytes()
    if damage == "delete":
        path.unlink()
    elif damage == "flip":
        path.write_bytes(content[:40] + bytes([content[40] ^ 1]) + content[41:])
    else:
        path.write_bytes(content[: len(content) // 2])
    again = prepared(rows, tmp_path / "cache")
    assert not again.cached
    assert list(again.train) == expected
    assert again.fingerprint == first.fingerprint
    assert f"is damaged ({path.name}: " in capsys.readouterr().err
    assert prepared(rows, tmp_path / "cache").cached


@pytest.mark.parametrize(
    "content", [b"{}", b"[]", b"7", b'{"tokens.bin": 3}', b'{"tokens.bin": {"size": 1}}', b"[" * 100_000, b"\xff", None]
)
def test_a_manifest_that_is_none_is_damage(content: bytes | None, rows: Path, tmp_path: Path) -> None:
    first = prepared(rows, tmp_path / "cache")
    manifest = first.folder / "manifest.json"
    manifest.unlink()
    manifest.mkdir() if content is None else manifest.write_bytes(content)
    again = prepared(rows, tmp_path / "cache")
    assert not again.cached
    assert again.fingerprint == first.fingerprint


def test_a_manifest_that_leaves_out_a_file_is_damage(rows: Path, tmp_path: Path) -> None:
    first = prepared(rows, tmp_path / "cache")
    manifest = json.loads((first.folder / "manifest.json").read_text())
    del manifest["tokens.bin"]
    (first.folder / "manifest.json").write_text(json.dumps(manifest))
    assert not prepared(rows, tmp_path / "cache").cached


def test_what_stands_where_an_entry_belongs_is_replaced(tmp_path: Path) -> None:
    def build(into: Path) -> None:
        (into / "whole").write_text("x")

    (tmp_path / "file").write_text("no folder")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    (tmp_path / ".file-left").write_text("no folder either")
    for key in ("file", "link"):
        folder, cached = get_or_build(tmp_path, key, build, print)
        assert (cached, (folder / "whole").read_text()) == (False, "x")
        assert get_or_build(tmp_path, key, build, print)[1]
    assert not (tmp_path / ".file-left").exists()


def test_a_cache_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "key.lock").mkdir()
    (tmp_path / "root").write_text("no folder")
    for root in (tmp_path, tmp_path / "root"):
        with pytest.raises(CheckpointError, match="set DPO_CACHE to another folder"):
            get_or_build(root, "key", lambda into: None, print)


def test_a_selection_reads_pairs_as_they_are_asked_for(rows: Path, tmp_path: Path) -> None:
    data = prepared(rows, tmp_path / "cache")
    order = [5, 2, 2, 7]
    chosen = Selection((data.train, order), (data.dev, range(2)), (data.test, range(0)))
    expected = [*(data.train[i] for i in order), data.dev[0], data.dev[1]]
    assert list(chosen) == expected
    assert chosen[-2:] == expected[-2:]
    assert len(chosen) == 6


def test_the_same_bytes_under_another_format_are_other_rows(rows: Path, tmp_path: Path) -> None:
    prepared(rows, tmp_path / "cache")
    other = rows.with_suffix(".csv")
    other.write_bytes(rows.read_bytes())
    with pytest.raises(DataError):
        prepared(other, tmp_path / "cache")
    same = rows.with_name("again.jsonl")
    same.write_bytes(rows.read_bytes())
    assert prepared(same, tmp_path / "cache").cached


def test_nothing_need_be_held_out(rows: Path, tmp_path: Path) -> None:
    data = prepared(rows, tmp_path / "cache", dev_fraction=0, test_fraction=0)
    assert [len(data.train), len(data.dev), len(data.test)] == [80, 0, 0]


def test_a_build_that_died_leaves_nothing_that_looks_ready(tmp_path: Path) -> None:
    def dies(into: Path) -> None:
        (into / "half").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        get_or_build(tmp_path, "key", dies, print)
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []
    (tmp_path / ".key-killed").mkdir()
    (tmp_path / ".key-killed" / "half").write_text("half")
    folder, cached = get_or_build(tmp_path, "key", lambda into: (into / "whole").write_text("x") and None, print)
    assert not cached
    assert (folder / "whole").read_text() == "x"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["key", "key.lock"]


def _build_slowly(root: Path, marks: Path) -> None:
    def build(into: Path) -> None:
        (marks / f"{os.getpid()}").touch()
        (into / "data").write_bytes(os.urandom(1000))

    get_or_build(root, "key", build, print)


def test_one_builds_while_the_others_wait(tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    marks.mkdir()
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_build_slowly, args=(tmp_path / "cache", marks)) for _ in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * 6
    assert len(list(marks.iterdir())) == 1


def test_a_template_that_refuses_rows_is_a_fault_of_the_rows(rows: Path, tmp_path: Path) -> None:
    strict = chatml().__class__(tokenizer_object=chatml().backend_tokenizer, eos_token="<|im_end|>")
    strict.chat_template = (
        "{% if 'Question 7 ' in messages[0]['content'] %}{{ raise_exception('no sevens') }}{% endif %}"
    )
    strict.chat_template += chatml().chat_template
    with pytest.raises(DataError, match="local:train:7/prompt: the chat template refuses it: no sevens"):
        prepared(rows, tmp_path / "cache", strict)
    dropped = prepared(rows, tmp_path / "cache", strict, on_bad="drop")
    assert dropped.report["refused"]["the chat template refuses it"] == {"count": 1, "ids": ["local:train:7"]}
    kept = [*dropped.train, *dropped.dev, *dropped.test]
    assert len(kept) == sum(dropped.report["kept"].values()) == 79
    assert [pair.id for pair in dropped.pairs["train"]] == [pair.id for pair in dropped.train]


def test_the_report_adds_up(rows: Path, tmp_path: Path) -> None:
    got = prepared(rows, tmp_path / "cache", max_length=24, min_prompt_tokens=4)
    report = got.report
    assert sum(report["rows"].values()) == 80
    assert sum(report["kept"].values()) + sum(r["count"] for r in report["refused"].values()) == 80
    lengths = np.array([[len(p.prompt_ids), len(p.chosen_ids), len(p.rejected_ids)] for p in got.train])
    assert report["lengths"]["train"]["prompt"]["0.5"] == int(np.median(lengths[:, 0]))
    assert report["lengths"]["train"]["chosen"]["1"] == lengths[:, 1].max()
    assert (lengths[:, 0] + lengths[:, 1:].max(axis=1)).max() <= 24
    assert report["truncation"]["last user turn"]["pairs"] > 0
    assert len(report["examples"]) == 3
    assert json.loads(json.dumps(report)) == report


def test_length_bias_finds_a_planted_difference() -> None:
    generator = np.random.default_rng(0)
    rejected = generator.integers(20, 200, 4000)
    lengths = np.stack([np.full(4000, 50), rejected + generator.normal(7, 30, 4000).round().astype(int), rejected], 1)
    bias = length_bias(lengths[:, 1:])
    assert bias is not None
    assert bias["mean_low"] < 7 < bias["mean_high"]
    assert bias["mean_low"] > 0
    assert bias["chosen_longer_low"] > 0.5
    assert length_bias(lengths[:1, 1:]) is None


@pytest.mark.parametrize("dies", [False, True])
def test_every_core_gives_what_one_gives(
    dies: bool, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = rows.read_text().splitlines()
    lines[7] = json.dumps({"prompt": "P", "chosen": "same " * 60 + "a", "rejected": "same " * 60 + "b"})
    rows.write_text("\n".join([*lines, json.dumps({"prompt": "<|im_end|>", "chosen": "a", "rejected": "b"})]))
    monkeypatch.setattr(parallel, "BATCH", 8)
    one = prepared(rows, tmp_path / "one", max_length=30, min_prompt_tokens=4)
    monkeypatch.setattr(parallel, "WORTH_IT", 10)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2})
    pids = tmp_path / "pids"
    pids.mkdir()
    work = parallel._encode

    def watched(encoder: Encoder, pairs: PairFile, start: int) -> parallel.Results:
        (pids / str(os.getpid())).touch()
        if dies and start == 24 and os.getpid() != home:
            os.kill(os.getpid(), signal.SIGKILL)
        return work(encoder, pairs, start)

    home = os.getpid()
    monkeypatch.setattr(parallel, "_encode", watched)
    many = prepared(rows, tmp_path / "many", max_length=30, min_prompt_tokens=4)
    assert {int(path.name) for path in pids.iterdir()} - {home}
    assert many.report == one.report
    assert list(many.train) == list(one.train)
    assert one.report["refused"]["completions equal after cutting"]["count"] == 1
    assert one.report["noted"]["control token typed in text"]["count"] == 1
    assert one.report["truncation"]["chosen"]["pairs"] > 0


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_strengths_come_back_through_the_files_for_review(kind: str, tmp_path: Path) -> None:
    row = {"domain": "d", "labels": 1, "score_A": 9, "score_B": 3}
    lines = [
        {**row, "post_id": f"p{i}", "history": f"Post {i}", "human_ref_A": f"A{i}", "human_ref_B": f"B{i}",
         "score_ratio": 2.0 + i % 3} for i in range(60)
    ]  # fmt: skip
    path = tmp_path / "shp.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    fractions = {"dev_fraction": 0.2, "test_fraction": 0.2}
    soft = prepare(dataset("shp", path=str(path), soft_labels=True, **fractions), chatml(), tmp_path / "cache")
    assert {round(pair.strength, 3) for pair in soft.train} == {0.667, 0.75, 0.8}
    assert min(len(soft.dev), len(soft.test)) > 0
    (out := tmp_path / "out").mkdir()
    write_pairs(soft, out, kind)
    again = prepared(out, tmp_path / "cache", soft_labels=True)
    assert again.fingerprint == soft.fingerprint  # token ids and strengths of every pair of every split
    hard = prepared(out, tmp_path / "cache")
    assert {pair.strength for pair in hard.train} == {1.0}
    (out / f"pairs-train.{kind}").unlink()
    (out / "pairs-train.jsonl").write_text(json.dumps({"prompt": "q", "chosen": "a", "rejected": "b", "strength": 0.3}))
    with pytest.raises(DataError, match=r"pairs-train.jsonl:0/strength: label not understood: 0.3, expected 0.5 to 1"):
        prepared(out, tmp_path / "cache", soft_labels=True)


@pytest.mark.parametrize("name", ["manifest.json", "rows"])
def test_a_cache_entry_with_a_pipe_in_it_is_built_again(tmp_path: Path, name: str) -> None:
    def build(folder: Path) -> None:
        (folder / "rows").write_text("1")

    entry, there = get_or_build(tmp_path, "key", build, print)
    (entry / name).unlink()
    os.mkfifo(entry / name)
    entry, there = get_or_build(tmp_path, "key", build, print)
    assert (there, (entry / "rows").read_text()) == (False, "1")
