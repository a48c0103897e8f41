"""Headers of safetensors files, read without torch and without trusting them.

Layout: eight bytes little-endian N, N bytes of JSON {name: {dtype, shape, data_offsets}}, then the tensors' bytes
without gaps (safetensors format, https://github.com/huggingface/safetensors).
"""

from __future__ import annotations

import json
import math
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LARGEST_HEADER = 100_000_000
MOST_DIMENSIONS = 32
BITS = {
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32,
    "C64": 64, "F64": 64, "I64": 64, "U64": 64,
}  # fmt: skip


@dataclass(frozen=True)
class Tensor:
    """Type name and shape of one tensor."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)


def read_header(path: Path) -> dict[str, Tensor]:
    """Tensors of a file by name; raises ValueError with the fault when the file is not what it claims to be."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("is no file")  # opening a pipe would wait for ever
    size = status.st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, LARGEST_HEADER):
            raise ValueError(
                f"is no safetensors file, or only the beginning of one: its header claims {length} bytes of {size}"
            )
        text = file.read(length)
    try:
        header: Any = json.loads(text, object_pairs_hook=_without_twins)
    except _Twice as error:
        raise ValueError(f"has a damaged header: {error} is in it twice") from None
    except (ValueError, RecursionError):
        raise ValueError("has a damaged header: it is not JSON that can be read") from None
    if not isinstance(header, dict):
        raise ValueError("has a damaged header: it is not a mapping")
    header.pop("__metadata__", None)
    tensors: dict[str, Tensor] = {}
    spans = []
    for name, entry in header.items():
        tensors[name], start, end = _read_entry(name, entry)
        spans.append((start, end, name))
    at = 0
    for start, end, name in sorted(spans):
        if start != at:
            raise ValueError(f"has a damaged header: {name} begins at byte {start}, where the one before ends at {at}")
        at = end
    if 8 + length + at != size:
        raise ValueError(f"is {size} bytes, its header describes {8 + length + at}: a torn copy or download")
    return tensors


def _read_entry(name: str, entry: Any) -> tuple[Tensor, int, int]:
    """(the tensor, first byte, byte after its last); raises ValueError."""
    fault = f"has a damaged header: {name}:"
    try:
        dtype, shape, (start, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"{fault} its entry lacks dtype, shape or offsets") from None
    # Exactly int: JSON in Python also reads 1.5, 1e999, Infinity, NaN and true.
    if any(type(n) is not int or n < 0 or n >= 2**63 for n in (*shape, start, end)) or len(shape) > MOST_DIMENSIONS:
        raise ValueError(f"{fault} its shape or its offsets are no whole numbers from 0 on")
    if not isinstance(dtype, str) or dtype not in BITS:
        raise ValueError(f"{fault} its type {dtype!s:.40} is not known")
    tensor = Tensor(dtype, shape)
    if (end - start) * 8 != tensor.numel * BITS[dtype]:
        raise ValueError(f"{fault} {end - start} bytes do not hold {dtype} of shape {list(shape)}")
    return tensor, start, end


class _Twice(Exception):
    pass


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise _Twice(name)
        found[name] = value
    return found
