"""Headers of safetensors files, read without torch and without trusting them.

Layout: eight bytes little-endian N, N bytes of JSON {name: {dtype, shape, data_offsets}}, then the tensors' bytes
without gaps (safetensors format, https://github.com/huggingface/safetensors).
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LARGEST_HEADER = 100_000_000
BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
    "I32": 32, "U32": 32, "F32": 32, "F64": 64, "I64": 64, "U64": 64,
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
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, LARGEST_HEADER):
            raise ValueError(f"its header claims {length} bytes of a file of {size}")
        try:
            header: Any = json.loads(file.read(length))
        except ValueError:
            raise ValueError("its header is not JSON") from None
    if not isinstance(header, dict):
        raise ValueError("its header is not a mapping")
    header.pop("__metadata__", None)
    tensors: dict[str, Tensor] = {}
    spans = []
    for name, entry in header.items():
        try:
            tensor = Tensor(str(entry["dtype"]), tuple(int(n) for n in entry["shape"]))
            start, end = (int(n) for n in entry["data_offsets"])
        except (KeyError, TypeError, ValueError):
            raise ValueError(f"{name}: its entry lacks dtype, shape or offsets") from None
        if tensor.dtype not in BITS or min((0, *tensor.shape)) < 0:
            raise ValueError(f"{name}: type {tensor.dtype} with shape {tensor.shape} is not known")
        if (end - start) * 8 != tensor.numel * BITS[tensor.dtype]:
            raise ValueError(f"{name}: {end - start} bytes do not hold {tensor.dtype} of shape {tensor.shape}")
        tensors[name] = tensor
        spans.append((start, end, name))
    at = 0
    for start, end, name in sorted(spans):
        if start != at:
            raise ValueError(f"{name}: begins at byte {start}, where the one before ends at {at}")
        at = end
    if at != size - 8 - length:
        raise ValueError(f"holds {size - 8 - length} bytes of tensors, its header describes {at}")
    return tensors
