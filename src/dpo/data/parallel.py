"""Encoding a large set on every core, in order, with the same outcome as on one."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from dpo.data import control_tokens
from dpo.data.id_bytes import EncodedPair
from dpo.data.pair_file import PairFile, from_line
from dpo.data.refusal import Refusal
from dpo.data.tokens import Encoder
from dpo.data.truncation import Cuts

BATCH = 1024
# Below this many pairs starting processes costs more than it saves.
WORTH_IT = 20_000
MOST = 8

Results = list[EncodedPair | Refusal]

# What forked workers inherit: the encoder and pairs of the set in work.
_inherited: tuple[Encoder, PairFile] | None = None


def encode_all(encoder: Encoder, pairs: PairFile) -> Iterator[tuple[int, Results]]:
    """Yield (index of the first, results) of consecutive batches; `encoder.cuts` receives what all of them cut.

    Workers are forked, so they share the tokenizer and start at once. Where a worker dies, the rest is encoded here.
    """
    starts = range(0, len(pairs), BATCH)
    cores = min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1, MOST)
    if len(pairs) < WORTH_IT or cores < 2:
        for start in starts:
            yield start, _encode(encoder, pairs, start)
        return
    global _inherited
    _inherited = encoder, pairs
    executor = ProcessPoolExecutor(cores, multiprocessing.get_context("fork"), initializer=_begin)
    try:
        futures: list[Future[tuple[Results, Cuts]]] = [executor.submit(_work, start) for start in starts]
        for start, future in zip(starts, futures, strict=True):
            try:
                results, cuts = future.result()
            except BrokenProcessPool:
                yield start, _encode(encoder, pairs, start)
            else:
                encoder.cuts.add(cuts)
                yield start, results
    finally:
        executor.shutdown(wait=False, cancel_futures=True)
        _inherited = None


def _encode(encoder: Encoder, pairs: PairFile, start: int) -> Results:
    stop = min(start + BATCH, len(pairs))
    return encoder.encode_to_bytes([from_line(pairs.line(index)) for index in range(start, stop)])


def _begin() -> None:
    # A worker left alone would wait for ever, and with it whoever waits for the lock it inherited.
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    # The tokenizer's own threads did not survive the fork, and this process is one of several anyway.
    control_tokens.THREADS = False


def _end_with_the_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _work(start: int) -> tuple[Results, Cuts]:
    assert _inherited is not None
    encoder, pairs = _inherited
    encoder.cuts = Cuts()
    return _encode(encoder, pairs, start), encoder.cuts
