"""What a computation on a fake card allocates and multiplies, operation by operation."""

from __future__ import annotations

import contextlib
import math
import sys
import weakref
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import flop_registry

from dpo.planning.allocator import Allocator, Host
from dpo.planning.contract import INDEXED, check

ANSWERS = {torch.bool: True}
"""What a program is told that asks for a number in a fake tensor: that checks hold, and 0 for all else."""

WRAPPERS = ("__torch_dispatch__", "_fn", "inner")
"""What torch puts between an operation and whoever asked for it."""


class Trace(TorchDispatchMode):
    """Counts bytes by what they were made for, their peak, and floating point operations (2 a multiply-add).

    `allocator`: of the device that is traced, `device`. `peak` is the most that lay there since the last `stage` began,
    `parts` what lay there then; `share` of a mask is taken to hold.
    """

    def __init__(self, allocator: Allocator | Host, device: str = "cuda") -> None:
        super().__init__()
        self.allocator, self.device = allocator, device
        self.purpose = "weights"
        self.counting, self.share = True, 1.0
        self.live = Counter[str]()
        self.peak, self.parts, self.flops = 0, Counter[str](), 0
        self._seen: dict[int, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten._local_scalar_dense.default:
            kind = args[0].dtype
            return ANSWERS.get(kind, 0.0 if kind.is_floating_point else 0)
        if func is torch.ops.aten.nonzero.default:
            return args[0].new_empty((self._holding(args[0]), args[0].dim()), dtype=torch.int64)
        if func._schema.name in INDEXED:
            args = (args[0], [rows for index in args[1] for rows in self._rows(index)], *args[2:])
        if self.device == "cuda":
            check(func, args, kwargs)
        if func is torch.ops.aten.add.Tensor and _adds_up(args, kwargs):
            return torch.ops.aten.add_.Tensor(*args)
        out = func(*args, **kwargs)
        for value in tree_iter(out):
            if self.counting and isinstance(value, torch.Tensor) and value.device.type == self.device:
                self.see(value)
        count = flop_registry.get(func._overloadpacket)
        if count is not None:
            # torch's counters know no type of the result among the arguments.
            shapes = [arg for arg in args if not isinstance(arg, torch.dtype)]
            self.flops += count(*shapes, **kwargs, out_val=out)
        elif func._overloadpacket._qualified_op_name.startswith("torch_attn::_varlen"):
            self.flops += varlen_flops(func, args, kwargs)
        return out

    def _holding(self, mask: torch.Tensor) -> int:
        return math.ceil(mask.numel() * self.share)

    def _rows(self, index: torch.Tensor | None) -> list[torch.Tensor | None]:
        """A mask as the places where it holds, which torch would ask its contents for."""
        if index is None or index.dtype is not torch.bool:
            return [index]
        return [index.new_empty(self._holding(index), dtype=torch.int64) for _ in range(index.dim())]

    @contextlib.contextmanager
    def made_for(self, purpose: str) -> Iterator[None]:
        """What is made inside is made for `purpose`."""
        before, self.purpose = self.purpose, purpose
        try:
            yield
        finally:
            self.purpose = before

    @contextlib.contextmanager
    def stage(self, purpose: str) -> Iterator[None]:
        """What is made inside is made for `purpose`; `peak`, `parts` and `flops` begin anew."""
        self.peak, self.parts, self.flops = self.allocator.allocated, Counter(self.live), 0
        with self.made_for(purpose):
            yield

    def see(self, tensor: torch.Tensor) -> None:
        """Count what `tensor` lies in, once, until it is gone."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._seen:
            return
        size = storage.nbytes()
        if size == 0:
            return
        block, purpose = self.allocator.take(size), self.purpose
        taken = block.size

        def gone(_: Any) -> None:
            del self._seen[key]
            self.live[purpose] -= taken
            self.allocator.give(block)

        self._seen[key] = weakref.ref(storage, gone)
        self.live[purpose] += taken
        if self.allocator.allocated > self.peak:
            self.peak, self.parts = self.allocator.allocated, Counter(self.live)


def _adds_up(args: Any, kwargs: Any) -> bool:
    """Whether this is autograd's own sum of what two users of a tensor hand back. It adds in place, save to subclasses
    of tensors, which these are."""
    one, other = args[:2]
    if kwargs or len(args) > 2 or not isinstance(other, torch.Tensor) or torch.is_grad_enabled():
        return False
    frame = sys._getframe(2)
    while frame.f_back is not None and frame.f_code.co_name in WRAPPERS:
        frame = frame.f_back
    if frame.f_code.co_name != "_engine_run_backward":
        return False
    return one.shape == other.shape and one.dtype == other.dtype and one.is_contiguous()


def varlen_flops(func: Any, args: Any, kwargs: Any) -> int:
    """Of flash attention over sequences of unknown lengths on a fake card: as one causal product over all rows would be
    wrong, each query is counted against half of the longest keys, an upper bound; backward 2.5 times that."""
    names = [argument.name for argument in func._schema.arguments]
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    query = given["query"]
    once = 4 * math.prod(query.shape) * (given["max_k"] // 2)
    return int(2.5 * once) if "backward" in func._overloadpacket._qualified_op_name else once
