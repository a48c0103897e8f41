"""Token ids on disk: one flat file of 32-bit ids and an index, so that a pair costs memory only while it is used."""

from __future__ import annotations

import hashlib
import os
import struct
from array import array
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dpo.data.id_bytes import EncodedPair, spans_of
from dpo.data.indexed import Indexed
from dpo.data.pair import Spans, TokenPair

IDS = "tokens.bin"
INDEX = "index.npz"


class TokenWriter:
    """Appends token pairs to tokens.bin of a folder; `close` writes the index and returns the fingerprint."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file = (folder / IDS).open("wb")
        self._state = hashlib.sha256()
        self._ends: dict[str, int] = {}
        self._lengths = array("i")
        self._counted = array("i")
        self._strengths = array("d")
        self._names: list[bytes] = []

    def write(self, pair: EncodedPair) -> None:
        """Append one pair to the split that is being written."""
        lengths = pair.lengths
        self._lengths.extend(lengths)
        self._counted.extend(pair.counted)
        self._strengths.append(pair.strength)
        self._names.append(pair.id.encode())
        ids = pair.stored
        self._state.update(struct.pack("<3id", *lengths, pair.strength))
        self._state.update(ids)
        self._file.write(ids)

    def end_split(self, split: str) -> None:
        """Close a split; what follows belongs to the next."""
        self._ends[split] = len(self._strengths)
        self._state.update(f"/{split}".encode())

    def close(self) -> str:
        """Write the index; return the fingerprint, sha256 over lengths, ids and strengths of every pair in order."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        with (self._folder / INDEX).open("wb") as file:
            np.savez(
                file,
                lengths=np.frombuffer(self._lengths, dtype=np.int32).reshape(-1, 3),
                counted=np.frombuffer(self._counted, dtype=np.int32).reshape(-1, 2),
                strengths=np.frombuffer(self._strengths, dtype=np.float64),
                names=np.array(self._names, dtype=np.bytes_),
                splits=np.array(list(self._ends), dtype=np.str_),
                ends=np.array(list(self._ends.values()), dtype=np.int64),
            )
            file.flush()
            os.fsync(file.fileno())
        return self._state.hexdigest()


class TokenFile(Indexed[TokenPair]):
    """The token pairs of one split. `lengths` is (pairs, 3): tokens of prompt, chosen, rejected; of the answers
    `counted` (pairs, 2) count."""

    def __init__(self, folder: Path, split: str) -> None:
        self._folder, self._split = folder, split
        with np.load(folder / INDEX) as index:
            where = list(index["splits"]).index(split)
            first, last = (0, *index["ends"])[where], index["ends"][where]
            self.lengths = index["lengths"][first:last].copy()
            self.counted = index["counted"][first:last].copy()
            self.strengths = index["strengths"][first:last].copy()
            self._names = index["names"][first:last].copy()
            sizes = index["lengths"].sum(axis=1, dtype=np.int64)
        self._starts = (np.cumsum(sizes) - sizes)[first:last] * 4
        self._descriptor = os.open(folder / IDS, os.O_RDONLY)

    def __len__(self) -> int:
        return len(self.strengths)

    def at(self, index: int) -> TokenPair:
        prompt, chosen, rejected = (int(length) for length in self.lengths[index])
        size = 4 * (prompt + chosen + rejected)
        ids = np.frombuffer(os.pread(self._descriptor, size, int(self._starts[index])), dtype=np.int32).tolist()
        sides = ids[prompt : prompt + chosen], ids[prompt + chosen :]
        given: tuple[Spans, Spans] = ((), ())
        if tuple(self.counted[index]) != (chosen, rejected):
            given = (spans_of(sides[0]), spans_of(sides[1]))
        return TokenPair(self._names[index].decode(), ids[:prompt], *sides, float(self.strengths[index]), given)

    def __reduce__(self) -> tuple[Any, ...]:
        return TokenFile, (self._folder, self._split)

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)


class Selection(Indexed[TokenPair]):
    """Pairs of some files, each with the indices wanted of it, in that order; read as asked for, 8 bytes a pair."""

    def __init__(self, *parts: tuple[Sequence[TokenPair], Iterable[int]]) -> None:
        self._files = [file for file, _ in parts]
        chosen = [np.fromiter(indices, dtype=np.int32) for _, indices in parts]
        self._indices = np.concatenate(chosen)
        self._file = np.repeat(np.arange(len(parts), dtype=np.int32), [len(indices) for indices in chosen])

    def __len__(self) -> int:
        return len(self._indices)

    def at(self, index: int) -> TokenPair:
        return self._files[self._file[index]][int(self._indices[index])]
