"""Headers of safetensors files that lie, are broken, or ask a reader for more than it has."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path

import pytest

from dpo.errors import ConfigError
from dpo.modeling.safetensors import BITS, read_header
from dpo.modeling.weights import check_safetensors


def entry(dtype: object = "U8", shape: object = (8,), offsets: object = (0, 8)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def write(folder: Path, header: object, data: int = 8) -> Path:
    text = header.encode() if isinstance(header, str) else json.dumps(header).encode()
    path = folder / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(data))
    return path


DAMAGED = {
    "deep": "[" * 200_000,
    "deep metadata": '{"__metadata__": ' + '{"a": ' * 100_000 + "1" + "}" * 100_001,
    "infinite shape": '{"t": {"dtype": "U8", "shape": [Infinity], "data_offsets": [0, 8]}}',
    "infinite offset": '{"t": {"dtype": "U8", "shape": [8], "data_offsets": [0, 1e999]}}',
    "huge number": '{"t": {"dtype": "U8", "shape": [' + "9" * 5000 + '], "data_offsets": [0, 8]}}',
    "not a number": '{"t": {"dtype": "U8", "shape": [NaN], "data_offsets": [0, 8]}}',
    "fraction": {"t": entry(shape=[8.0])},
    "truth as a number": {"t": entry(shape=[True, 8])},
    "negative shape": {"t": entry(shape=[-2, -4])},
    "negative offsets": {"t": entry(offsets=[-8, 0])},
    "unknown type": {"t": entry(dtype="F12")},
    "type of another type": {"t": entry(dtype=["U8"])},
    "shape in words": {"t": entry(shape="12345678")},
    "no offsets": {"t": {"dtype": "U8", "shape": [8]}},
    "entry is a list": {"t": [1]},
    "bytes do not fit": {"t": entry(dtype="F32")},
    "overlap": {"a": entry(shape=[5], offsets=[0, 5]), "b": entry(shape=[4], offsets=[4, 8])},
    "gap": {"a": entry(shape=[3], offsets=[0, 3]), "b": entry(shape=[4], offsets=[4, 8])},
    "the same bytes twice": {"a": entry(), "b": entry()},
    "the same name twice": '{"t": {"dtype": "U8", "shape": [8], "data_offsets": [0, 8]}, "t": {}}',
    "a list": [entry()],
    "not text": "\udcff".encode("utf-8", "surrogatepass").decode("latin1"),
    "more dimensions than any tensor": {"t": entry(shape=[1] * 100_000 + [8])},
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_header_is_one_line_that_names_the_file(kind: str, tmp_path: Path) -> None:
    write(tmp_path, DAMAGED[kind])
    with pytest.raises(ConfigError) as caught:
        check_safetensors(tmp_path, "model.path=x")
    assert str(caught.value).startswith("model.path=x: model.safetensors: ")
    assert "damaged header" in str(caught.value)
    assert len(str(caught.value)) < 300


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.safetensors")
    with pytest.raises(ConfigError, match="is no file"):
        check_safetensors(tmp_path, "model.path=x")


def test_every_type_of_the_format_is_read(tmp_path: Path) -> None:
    for dtype, bits in BITS.items():
        found = read_header(
            write(tmp_path, {"__metadata__": {"format": "pt"}, "t": entry(dtype, [8], [0, bits])}, bits)
        )
        assert found["t"].numel == 8
        assert found["t"].dtype == dtype
    assert read_header(write(tmp_path, {}, 0)) == {}
    assert (
        read_header(write(tmp_path, {"t": entry("F32", [], [0, 4]), "e": entry("F32", [0], [4, 4])}, 4))["t"].numel == 1
    )
