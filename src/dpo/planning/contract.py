"""What kernels demand of their arguments, checked where tensors without contents would let anything pass.

Shapes, and most mixtures of devices, are checked by torch itself when an operation has no contents to work on; a kernel
of its own (flash attention, bitsandbytes) or a product in two types is not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch.utils._pytree import tree_iter

PRODUCTS = ("aten::mm", "aten::bmm", "aten::addmm", "aten::baddbmm", "aten::addmm_", "aten::linear")
MOVES = ("aten::_to_copy", "aten::copy_", "aten::copy", "aten::_copy_from", "aten::set_", "aten::lift_fresh")
"""Operations that take tensors of several devices by design."""
INDEXED = ("aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_")
"""They take indices from the CPU, one copy a call."""
HALVES = (torch.float16, torch.bfloat16)


class Broken(RuntimeError):
    """A kernel would have refused its arguments, or read what is not there."""


def check(func: Any, args: Any, kwargs: Any) -> None:
    """Raise Broken where a card would fail on this call."""
    name = func._schema.name
    tensors = [value for value in tree_iter((args, kwargs)) if isinstance(value, torch.Tensor)]
    if name not in MOVES and name not in INDEXED:
        # A number of one element may lie anywhere.
        places = {tensor.device.type for tensor in tensors if tensor.dim() > 0}
        if len(places) > 1:
            raise Broken(f"{name}: arguments on {' and '.join(sorted(places))}")
    if name in PRODUCTS and kwargs.get("out_dtype") is None and not any(isinstance(a, torch.dtype) for a in args):
        kinds = {tensor.dtype for tensor in tensors}
        if len(kinds) > 1:
            raise Broken(f"{name}: arguments of {' and '.join(sorted(map(str, kinds)))}")
    if name.startswith(("torch_attn::", "bitsandbytes::")):
        given = {argument.name: value for argument, value in zip(func._schema.arguments, args, strict=False)} | kwargs
        if name.startswith("torch_attn::_varlen_attn"):
            _varlen(name, given)
        elif name == "bitsandbytes::dequantize_4bit":
            _scales(name, given["absmax"], math.prod(given["shape"]), given["blocksize"])
            if given["A"].numel() * 2 * given["A"].element_size() != _even(math.prod(given["shape"])):
                raise Broken(f"{name}: {given['A'].numel()} bytes for {math.prod(given['shape'])} weights")
        elif name == "bitsandbytes::dequantize_blockwise":
            _scales(name, given["absmax"], given["A"].numel(), given["blocksize"])


def _varlen(name: str, given: Mapping[str, Any]) -> None:
    query, key, value = given["query"], given["key"], given["value"]
    kinds = {tensor.dtype for tensor in (query, key, value)}
    if len(kinds) > 1 or query.dtype not in HALVES:
        raise Broken(f"{name}: query, key and value of {' and '.join(sorted(map(str, kinds)))}")
    if len({tensor.shape[-1] for tensor in (query, key, value)}) > 1 or query.shape[-1] % 8 or query.shape[-1] > 256:
        raise Broken(f"{name}: heads of {query.shape[-1]}")
    if key.shape != value.shape or query.shape[-2] % key.shape[-2]:
        raise Broken(f"{name}: {query.shape[-2]} heads on {key.shape[-2]} and {value.shape[-2]}")
    if query.shape[-2] != key.shape[-2] and not given.get("enable_gqa", True):
        raise Broken(f"{name}: {query.shape[-2]} heads on {key.shape[-2]} without enable_gqa")
    ends = [given["cu_seq_q"], given["cu_seq_k"]]
    if any(end.dtype is not torch.int32 or end.dim() != 1 for end in ends) or ends[0].shape != ends[1].shape:
        raise Broken(f"{name}: ends of sequences must be two vectors of int32, are {[end.dtype for end in ends]}")
    if query.stride(-1) != 1 or key.stride(-1) != 1 or value.stride(-1) != 1:
        raise Broken(f"{name}: the last dimension is not contiguous")


def _scales(name: str, scales: torch.Tensor, numbers: int, block: int) -> None:
    if scales.dtype is not torch.float32 or scales.numel() != -(-numbers // block):
        raise Broken(f"{name}: {scales.numel()} scales of {scales.dtype} for {numbers} numbers in blocks of {block}")


def _even(numbers: int) -> int:
    return numbers + numbers % 2
