"""Several micro-batches at once on a CPU: a thread for each, with cores of its own.

Two cores that share every small operation wait for each other at each of them; two that compute a micro-batch each
meet once a step. Python's lock is no hindrance, as torch lets go of it inside an operation.
"""

from __future__ import annotations

import functools
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, TypeVar

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

T = TypeVar("T")
R = TypeVar("R")


class Workers:
    """`count` threads of `cores` each; a count of 1 makes none and computes where it is called, with all cores.

    Threads are made at the first use and end with `close`, which a `with` block calls; also when nobody holds their
    owner any more.
    """

    def __init__(self, count: int = 1, cores: int = 1) -> None:
        self.count, self.cores = count, cores
        self._pool: ThreadPoolExecutor | None = None

    @classmethod
    def of(cls, count: int) -> Workers:
        """`count` threads that share the cores torch may use here."""
        return cls(count, max(1, torch.get_num_threads() // count))

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End the threads; a later `map` makes new ones."""
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None

    def map(self, task: Callable[[T], R], items: Sequence[T]) -> Iterator[R]:
        """`task` of each item, in their order, `count` of them at a time; no item is begun before the results of
        those at work have been taken. An exception is raised when its companions have ended.

        Gradient mode, autocast and the number of torch's threads belong to a thread: `task` has to enter the first
        two itself.
        """
        if self.count == 1 or len(items) == 1:
            yield from map(task, items)
            return
        if self._pool is None:
            # In a thread of its own this changes nobody else's number of threads.
            self._pool = ThreadPoolExecutor(
                self.count, "micro-batch", initializer=functools.partial(torch.set_num_threads, self.cores)
            )
        for start in range(0, len(items), self.count):
            running: list[Future[R]] = [self._pool.submit(task, item) for item in items[start : start + self.count]]
            wait(running)
            for done in running:
                yield done.result()


def most_at_once(model: torch.nn.Module, device: str, batch_size: int) -> int:
    """How many micro-batches of a step gain from being computed at once: as many as a CPU has threads for torch and a
    step has pairs; one on other devices.

    One also where dropout is alive (the threads would draw from one generator in an order that chance decides), and
    where more than adapters is trained (each micro-batch has gradients of its own until they are added up).
    """
    if device != "cpu" or _has_dropout(model) or not _trains_little(model):
        return 1
    return max(1, min(torch.get_num_threads(), batch_size))


def _has_dropout(model: torch.nn.Module) -> bool:
    return any(
        (isinstance(module, torch.nn.Dropout) and module.p > 0) or getattr(module, "attention_dropout", 0.0)
        for module in model.modules()
    )


def _trains_little(model: torch.nn.Module) -> bool:
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    return 4 * sum(size for size, trained in sizes if trained) < sum(size for size, _ in sizes)
