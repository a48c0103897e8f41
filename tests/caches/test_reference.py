"""The reference cache: computed once, exact, and rebuilt when damaged; by real processes on real files."""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import struct
import subprocess
import sys
import time
import weakref
from collections.abc import Sequence
from pathlib import Path

import pytest

from dpo.caches.keys import context_key, entry_key
from dpo.caches.reference import ReferenceCache
from dpo.data.pair import TokenPair
from dpo.errors import CheckpointError

CONTEXT = context_key(base="w", quantization="none", adapter="none", precision="fp32", device="cpu", attention="p")
SOURCE = Path(__file__).parents[2] / "src"


def make_pairs(count: int, offset: int = 0) -> list[TokenPair]:
    return [TokenPair(f"s:train:{i}", [i, 1], [2, i], [3]) for i in range(offset, offset + count)]


def value_of(pair: TokenPair) -> tuple[float, float]:
    rng = random.Random(str(pair.prompt_ids))
    return -rng.random() * 100, -rng.random() / 3


class Computer:
    def __init__(self) -> None:
        self.seen: list[str] = []

    def __call__(self, pairs: list[TokenPair]) -> list[tuple[float, float]]:
        self.seen += [pair.id for pair in pairs]
        return [value_of(pair) for pair in pairs]


def test_a_hit_is_bit_identical_to_the_miss(tmp_path: Path) -> None:
    pairs, compute = make_pairs(10), Computer()
    first = ReferenceCache(tmp_path / "r.sqlite")
    missed = first.fill(pairs, CONTEXT, compute, chunk=4)
    second = ReferenceCache(tmp_path / "r.sqlite")
    hit = second.fill(pairs, CONTEXT, compute)
    assert missed == {pair.id: value_of(pair) for pair in pairs}
    assert {k: struct.pack("<dd", *v) for k, v in hit.items()} == {k: struct.pack("<dd", *v) for k, v in missed.items()}
    assert len(compute.seen) == 10
    assert (first.counters.hits, first.counters.misses) == (0, 10)
    assert (second.counters.hits, second.counters.misses) == (10, 0)


def test_a_hit_knows_what_computing_it_took(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("dpo.caches.reference.time.monotonic", lambda: now[0])

    def compute(pairs: list[TokenPair]) -> list[tuple[float, float]]:
        now[0] += 3.0 * len(pairs)
        return [value_of(pair) for pair in pairs]

    first = ReferenceCache(tmp_path / "r.sqlite")
    first.fill(make_pairs(10), CONTEXT, compute, chunk=4)
    assert first.counters.seconds == pytest.approx(30)
    second = ReferenceCache(tmp_path / "r.sqlite")
    second.fill(make_pairs(8, offset=4), CONTEXT, compute)
    assert (second.counters.hits, second.counters.misses) == (6, 2)
    assert second.counters.seconds == pytest.approx(24)


def test_key_is_content_with_the_prompt_boundary_and_nothing_else() -> None:
    pair = TokenPair("a:train:1", [1, 2], [3], [4], strength=0.7)
    assert entry_key(CONTEXT, pair) == entry_key(CONTEXT, TokenPair("b:test:9", [1, 2], [3], [4]))
    others = [
        TokenPair("x", [1], [2, 3], [4]),
        TokenPair("x", [1, 2], [4], [3]),
        TokenPair("x", [1, 2], [3, 4], [4]),
    ]
    assert len({entry_key(CONTEXT, other) for other in [pair, *others]}) == 4
    names = ("base", "quantization", "adapter", "precision", "device", "attention")
    fields = dict(zip(names, ("w", "none", "none", "fp32", "cpu", "p"), strict=True))
    changed = {context_key(**{**fields, name: "other"}) for name in fields}
    assert len(changed | {CONTEXT}) == 7


def test_same_tokens_under_two_ids_are_computed_once(tmp_path: Path) -> None:
    pairs = [TokenPair("a", [1], [2], [3]), TokenPair("b", [1], [2], [3])]
    compute = Computer()
    values = ReferenceCache(tmp_path / "r.sqlite").fill(pairs, CONTEXT, compute)
    assert len(compute.seen) == 1
    assert values["a"] == values["b"]


def test_overlapping_data_computes_only_what_is_new(tmp_path: Path) -> None:
    cache, compute = ReferenceCache(tmp_path / "r.sqlite"), Computer()
    cache.fill(make_pairs(6), CONTEXT, compute)
    cache.fill(make_pairs(6, offset=3), CONTEXT, compute)
    assert compute.seen == [f"s:train:{i}" for i in range(9)]


def test_failed_compute_keeps_earlier_chunks_and_frees_its_claims(tmp_path: Path) -> None:
    calls = 0

    def fails_second(pairs: list[TokenPair]) -> list[tuple[float, float]]:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise MemoryError("enough")
        return [value_of(pair) for pair in pairs]

    cache = ReferenceCache(tmp_path / "r.sqlite")
    with pytest.raises(MemoryError):
        cache.fill(make_pairs(8), CONTEXT, fails_second, chunk=3)
    compute = Computer()
    cache.fill(make_pairs(8), CONTEXT, compute)
    assert compute.seen == [f"s:train:{i}" for i in range(3, 8)]


def test_values_that_are_not_finite_are_not_kept(tmp_path: Path) -> None:
    cache = ReferenceCache(tmp_path / "r.sqlite")
    cache.fill(make_pairs(1), CONTEXT, lambda pairs: [(float("nan"), -1.0)])
    compute = Computer()
    cache.fill(make_pairs(1), CONTEXT, compute)
    assert len(compute.seen) == 1


@pytest.mark.parametrize("column", ["value", "checksum", "context"])
def test_a_damaged_row_is_computed_again(tmp_path: Path, column: str) -> None:
    lines: list[str] = []
    cache, pairs = ReferenceCache(tmp_path / "r.sqlite", say=lines.append), make_pairs(5)
    good = cache.fill(pairs, CONTEXT, Computer())
    key = entry_key(CONTEXT, pairs[2])
    with sqlite3.connect(cache.path) as db:
        (old,) = db.execute(f"SELECT {column} FROM entries WHERE key = ?", (key,)).fetchone()  # noqa: S608
        new = old + "x" if isinstance(old, str) else bytes([old[0] ^ 1]) + old[1:]
        db.execute(f"UPDATE entries SET {column} = ? WHERE key = ?", (new, key))  # noqa: S608
    compute = Computer()
    assert cache.fill(pairs, CONTEXT, compute) == good
    assert compute.seen == ["s:train:2"]
    assert len(lines) == 1
    assert "1 damaged" in lines[0]


@pytest.mark.parametrize("damage", ["truncated", "overwritten", "header", "zeroed middle"])
def test_a_damaged_file_is_set_aside_and_rebuilt(tmp_path: Path, damage: str) -> None:
    lines: list[str] = []
    cache, pairs = ReferenceCache(tmp_path / "r.sqlite", say=lines.append), make_pairs(400)
    good = cache.fill(pairs, CONTEXT, Computer())
    with sqlite3.connect(cache.path) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    content = bytearray(cache.path.read_bytes())
    if damage == "truncated":
        content = content[: len(content) // 2]
    elif damage == "overwritten":
        content = bytearray(b"not a database at all" * 500)
    elif damage == "header":
        content[:100] = bytes(100)
    else:
        content[4096:-4096] = bytes(len(content) - 8192)
    cache.path.write_bytes(bytes(content))
    compute = Computer()
    assert cache.fill(pairs, CONTEXT, compute) == good
    assert len(compute.seen) == 400
    assert len(list(tmp_path.glob("*.damaged-*"))) == 1
    assert len([line for line in lines if "set aside" in line]) == 1
    assert cache.fill(pairs, CONTEXT, Computer()) == good


def test_single_flipped_bits_are_never_silent(tmp_path: Path) -> None:
    path = tmp_path / "r.sqlite"
    cache, pairs = ReferenceCache(path, say=lambda line: None), make_pairs(40)
    good = cache.fill(pairs, CONTEXT, Computer())
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    content = path.read_bytes()
    rng = random.Random(0)
    for _ in range(60):
        flipped = bytearray(content)
        flipped[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        for leftover in tmp_path.iterdir():
            leftover.unlink()
        path.write_bytes(bytes(flipped))
        assert ReferenceCache(path, say=lambda line: None).fill(pairs, CONTEXT, Computer()) == good


def test_a_path_that_cannot_be_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "r.sqlite").mkdir()
    with pytest.raises(CheckpointError, match=r"r\.sqlite"):
        ReferenceCache(tmp_path / "r.sqlite").fill(make_pairs(1), CONTEXT, Computer())


WORKER = """
import json, sys, time
from pathlib import Path
from dpo.data.pair import TokenPair
from dpo.caches.reference import ReferenceCache
import random
path, log, pause, count, context = sys.argv[1:6]
pairs = [TokenPair(f"s:train:{i}", [i, 1], [2, i], [3]) for i in range(int(count))]
def compute(batch):
    with open(log, "a") as file:
        for pair in batch:
            file.write(pair.id + "\\n")
    time.sleep(float(pause))
    return [(-random.Random(str(p.prompt_ids)).random() * 100, -1.0) for p in batch]
values = ReferenceCache(Path(path), poll_seconds=0.02).fill(pairs, context, compute, chunk=5)
print(json.dumps(values))
"""


def start_worker(tmp_path: Path, pause: float, count: int, name: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WORKER, str(tmp_path / "r.sqlite"), str(tmp_path / name), str(pause), str(count)]
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    return subprocess.Popen([*command, CONTEXT], stdout=subprocess.PIPE, text=True, env=environment)


def test_eight_processes_compute_each_pair_once(tmp_path: Path) -> None:
    workers = [start_worker(tmp_path, 0.02, 60, "log") for _ in range(8)]
    answers = [json.loads(worker.communicate(timeout=120)[0]) for worker in workers]
    assert all(worker.returncode == 0 for worker in workers)
    assert all(answer == answers[0] for answer in answers)
    computed = (tmp_path / "log").read_text().split()
    assert sorted(computed) == sorted(f"s:train:{i}" for i in range(60))


def test_claims_of_a_killed_process_are_taken_over(tmp_path: Path) -> None:
    victim = start_worker(tmp_path, 60, 12, "victim")
    while not (tmp_path / "victim").exists():
        assert victim.poll() is None
        time.sleep(0.02)
    waiting = start_worker(tmp_path, 0, 12, "heir")
    while not (tmp_path / "heir").exists():
        assert waiting.poll() is None
        time.sleep(0.02)
    victim.send_signal(signal.SIGKILL)
    victim.communicate()
    values = json.loads(waiting.communicate(timeout=60)[0])
    assert len(values) == 12
    assert sorted((tmp_path / "heir").read_text().split()) == sorted(f"s:train:{i}" for i in range(12))


def test_prune_forgets_one_context_only(tmp_path: Path) -> None:
    cache, other = ReferenceCache(tmp_path / "r.sqlite"), "f" * 64
    cache.fill(make_pairs(4), CONTEXT, Computer())
    cache.fill(make_pairs(3), other, Computer())
    assert {(name, count) for name, count, _ in cache.contexts()} == {(CONTEXT, 4), (other, 3)}
    assert cache.prune([CONTEXT]) == 4
    compute = Computer()
    cache.fill(make_pairs(3), other, compute)
    assert not compute.seen
    cache.fill(make_pairs(4), CONTEXT, compute)
    assert len(compute.seen) == 4


def test_each_key_is_looked_up_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not again for every chunk, of which 60,000 pairs have a thousand."""
    looked: list[bytes] = []
    read = ReferenceCache._read

    def counting(self: ReferenceCache, db: sqlite3.Connection, keys: list[bytes], context: str) -> object:
        looked.extend(keys)
        return read(self, db, keys, context)

    monkeypatch.setattr(ReferenceCache, "_read", counting)
    compute = Computer()
    ReferenceCache(tmp_path / "r.sqlite").fill(make_pairs(100), CONTEXT, compute, chunk=4)
    assert len(compute.seen) == len(set(compute.seen)) == 100
    assert len(looked) == len(set(looked)) == 100


def test_pairs_are_read_as_they_are_computed_and_not_kept(tmp_path: Path) -> None:
    made: list[weakref.ref[TokenPair]] = []
    most = 0

    class OnDisk(Sequence):  # type: ignore[type-arg]
        def __len__(self) -> int:
            return 300

        def __getitem__(self, index: int) -> TokenPair:  # type: ignore[override]
            if index >= 300:
                raise IndexError
            pair = make_pairs(1, index % 290)[0]
            made.append(weakref.ref(pair))
            nonlocal most
            most = max(most, sum(ref() is not None for ref in made[-100:]))
            return pair

    found = ReferenceCache(tmp_path / "r.sqlite").fill(OnDisk(), CONTEXT, Computer(), chunk=8)
    assert found == {pair.id: value_of(pair) for pair in make_pairs(290)}
    assert most <= 2 * 8 + 2
