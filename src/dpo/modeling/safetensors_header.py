"""Is a safetensors file whole? Told from its header alone, without reading tensors or importing torch."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

LARGEST_HEADER = 100 * 2**20


def read_header(path: Path) -> dict[str, Any]:
    """Tensor name -> {dtype, shape, data_offsets}; raises ValueError with a few words when the file is not whole."""
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else LARGEST_HEADER + 1
        if length > min(LARGEST_HEADER, size - 8):
            raise ValueError("is no safetensors file, or only the beginning of one")
        text = file.read(length)
    try:
        header = json.loads(text)
        tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
        end = max((int(entry["data_offsets"][1]) for entry in tensors.values()), default=0)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        raise ValueError("has a damaged header") from None
    if 8 + length + end != size:
        raise ValueError(f"is {size} bytes, its header says {8 + length + end}: a torn copy or download")
    return tensors
