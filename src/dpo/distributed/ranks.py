"""What the processes of one data-parallel run do together. A single process takes the same path and sends nothing.

Every rank holds the step's whole batch and computes its share of it. Each gradient is already weighted by
pairs / pairs of the step, so the sum over ranks is the very gradient one process would have: uneven shares, and a rank
without any pair, need no correction. The sum is taken once a step, after all ranks have said that their share went
well, which is what lets an out-of-memory retry or a NaN stop be everyone's decision; a wrapper that reduces inside
the backward pass could do neither. Accelerate and TRL see one process each.

Figures and decisions travel over gloo, gradients over the device's own backend.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from dpo.config.hardware import Device
from dpo.errors import DpoError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from dpo.data.pair import TokenPair
    from dpo.distributed.launch import Place

T = TypeVar("T")
BUCKET_BYTES = 64 << 20
"""Gradients are summed in pieces of about this size: large enough for bandwidth, small enough to hold twice."""
PATIENCE = timedelta(hours=12)
"""Longest wait for another rank. One that died is noticed at once; this is for one that tokenizes a large set."""


class LostRank(DpoError):
    """Another rank of this run failed or is gone; what ended it is told by that rank."""

    def __init__(self, text: str, exit_code: int = 1) -> None:
        super().__init__(text)
        self.exit_code = exit_code


@dataclass(frozen=True)
class Ranks:
    """This process among `size` ones."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    figures: Any = None

    @classmethod
    def join(cls, place: Place | None, device: str) -> Ranks:
        """Meet the other processes of the run; None is a run of one. `device` is cpu or cuda."""
        if place is None:
            return cls()
        import torch.distributed as dist

        backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
        dist.init_process_group(backend, init_method="env://", rank=place.rank, world_size=place.size, timeout=PATIENCE)
        figures = dist.new_group(backend="gloo", timeout=PATIENCE)
        return cls(place.rank, place.size, place.local_rank, place.local_size, figures)

    @property
    def first(self) -> bool:
        """Whether this process writes, prints and tracks."""
        return self.rank == 0

    def leave(self) -> None:
        """Part from the others; their connections see an end, not a failure."""
        if self.size > 1:
            import torch.distributed as dist

            with contextlib.suppress(RuntimeError):
                dist.destroy_process_group()

    # Agreement.

    def gather(self, value: T) -> list[T]:
        """The value of every rank, by rank."""
        if self.size == 1:
            return [value]
        import torch.distributed as dist

        values: list[Any] = [None] * self.size
        with losing():
            dist.all_gather_object(values, value, group=self.figures)
        return values

    def from_first(self, value: T) -> T:
        """Rank 0's value."""
        if self.size == 1:
            return value
        import torch.distributed as dist

        box = [value]
        with losing():
            dist.broadcast_object_list(box, src=0, group=self.figures)
        return box[0]

    def agreed_signal(self, pending: int | None) -> int | None:
        """A signal that any rank has received, the same for all; so that all stop at the same step."""
        return max((number for number in self.gather(pending) if number is not None), default=None)

    def lead(self, action: Callable[[], object]) -> None:
        """Rank 0 acts while the others wait; where it fails, all end with its exit code."""
        if self.size == 1:
            action()
            return
        told: tuple[int, str] | None = None
        try:
            if self.first:
                action()
        except Exception as error:
            told = (getattr(error, "exit_code", 1), str(error))
            self.gather(told)
            raise
        failure = self.gather(told)[0]
        if failure is not None:
            raise LostRank(f"rank 0: {failure[1].splitlines()[0] if failure[1] else 'failed'}", failure[0])

    @contextlib.contextmanager
    def in_turn(self) -> Iterator[None]:
        """The first process of each machine goes ahead; the others then find what it left in the caches."""
        if self.local_rank != 0:
            self.gather(None)
        yield
        if self.local_rank == 0:
            self.gather(None)

    # One step.

    def share(self, pairs: Sequence[TokenPair]) -> list[TokenPair]:
        """The pairs of a step that this rank computes, in their order: each pair in one share, tokens about even."""
        if self.size == 1:
            return list(pairs)
        from dpo.engine.budget import packed_tokens

        tokens = [packed_tokens([pair]) for pair in pairs]
        loads, mine = [0] * self.size, []
        for i in sorted(range(len(pairs)), key=lambda i: -tokens[i]):
            least = loads.index(min(loads))
            loads[least] += tokens[i]
            if least == self.rank:
                mine.append(i)
        return [pairs[i] for i in sorted(mine)]

    def sum_gradients(self, parameters: Iterable[Any]) -> None:
        """Put the sum over ranks into `.grad` of every trainable parameter that has one on any rank."""
        if self.size == 1:
            return
        import torch

        trainable = [parameter for parameter in parameters if parameter.requires_grad]
        missing = self.gather([i for i, parameter in enumerate(trainable) if parameter.grad is None])
        nowhere = set(missing[0]).intersection(*missing)
        for i in set(missing[self.rank]) - nowhere:
            trainable[i].grad = torch.zeros_like(trainable[i])
        gradients = [parameter.grad for i, parameter in enumerate(trainable) if i not in nowhere]
        for bucket in _buckets(gradients, BUCKET_BYTES):
            flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
            with losing():
                torch.distributed.all_reduce(flat)
            for gradient, part in zip(bucket, flat.split([g.numel() for g in bucket]), strict=True):
                gradient.copy_(part.view_as(gradient))

    def sum_figures(self, window: dict[str, list[float]]) -> dict[str, list[float]]:
        """Entry by entry the sum over ranks of name -> [weighted total, weight]."""
        if self.size == 1:
            return window
        return summed(self.gather(window))

    def same_start(self, parameters: Iterable[Any]) -> None:
        """Give every rank rank 0's trainable values."""
        if self.size == 1:
            return
        import torch.distributed as dist

        for parameter in parameters:
            if parameter.requires_grad:
                with losing():
                    dist.broadcast(parameter.data, src=0)

    def own_folder(self, checkpoint: Path) -> Path:
        """Where this rank's part of a checkpoint lies: rank 0's in the folder itself."""
        return checkpoint if self.first else checkpoint / f"rank-{self.rank}"


ALONE = Ranks()
"""A run of one process."""


@contextlib.contextmanager
def joined(place: Place | None, device: Device) -> Iterator[Ranks]:
    """This run's ranks, met here and left at the end of the block."""
    import torch

    ranks = Ranks.join(place, "cuda" if torch.cuda.is_available() and device is not Device.cpu else "cpu")
    yield ranks
    # After a failure there may be nobody to part from, and waiting for them would hide what happened.
    ranks.leave()


@contextlib.contextmanager
def losing() -> Iterator[None]:
    """A collective that fails has lost a rank: gloo says so as a RuntimeError about its connection."""
    try:
        yield
    except RuntimeError as error:
        if type(error).__name__ == "OutOfMemoryError":
            raise
        raise LostRank(f"another rank of this run is gone ({str(error).splitlines()[0][:120]})") from error


def summed(windows: Sequence[dict[str, list[float]]]) -> dict[str, list[float]]:
    """Entry by entry the sum of name -> [weighted total, weight]."""
    total: dict[str, list[float]] = {}
    for window in windows:
        for name, (value, weight) in window.items():
            entry = total.setdefault(name, [0.0, 0.0])
            entry[0] += value
            entry[1] += weight
    return total


def _buckets(tensors: list[Any], size: int) -> Iterator[list[Any]]:
    """Consecutive tensors of one dtype, up to `size` bytes together."""
    bucket: list[Any] = []
    held = 0
    for tensor in tensors:
        count = tensor.numel() * tensor.element_size()
        if bucket and (held + count > size or tensor.dtype != bucket[0].dtype):
            yield bucket
            bucket, held = [], 0
        bucket.append(tensor)
        held += count
    if bucket:
        yield bucket
