"""The pairs of a prepared dataset as files for people: one a split, JSON Lines or Parquet."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from dpo.data.pair import NOTHING_MORE, Message, Pair, messages_of
from dpo.data.pair_file import PairFile
from dpo.data.prepare import Prepared
from dpo.data.sources.messages import message_dict

ROWS = 1000
MORE = ("reasoning_content", "tool_calls", "tool_call_id", "name")


def write_pairs(data: Prepared, folder: Path, kind: str) -> None:
    """Write pairs-SPLIT.jsonl or .parquet for each split into `folder`; files appear whole or not at all."""
    for split, pairs in data.pairs.items():
        path = folder / f"pairs-{split}.{kind}"
        aside = path.with_name(f".{path.name}.{os.getpid()}")
        if kind == "jsonl":
            shutil.copyfile(data.folder / f"{split}.jsonl", aside)
        else:
            _write_parquet(pairs, aside)
        aside.replace(path)


def _write_parquet(pairs: PairFile, path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    text, more = pyarrow.string(), any(map(_says_more, pairs))
    message = pyarrow.struct([(name, text) for name in (("role", "content", *MORE) if more else ("role", "content"))])
    answer = pyarrow.list_(message) if more else text
    columns = {
        "id": text,
        "prompt": pyarrow.list_(message),
        "chosen": answer,
        "rejected": answer,
        "strength": pyarrow.float64(),
        "group": text,
        **({"tools": text} if more else {}),
    }
    schema = pyarrow.schema(columns)
    with pyarrow.parquet.ParquetWriter(path, schema) as writer:
        for start in range(0, len(pairs), ROWS):
            rows = [
                {
                    "id": pair.id,
                    "prompt": [_flat(turn) for turn in pair.prompt],
                    "chosen": [_flat(turn) for turn in messages_of(pair.chosen)] if more else pair.chosen,
                    "rejected": [_flat(turn) for turn in messages_of(pair.rejected)] if more else pair.rejected,
                    "strength": pair.strength,
                    "group": pair.group,
                    **({"tools": pair.tools} if more else {}),
                }
                for pair in pairs[start : start + ROWS]
            ]
            writer.write_table(pyarrow.Table.from_pylist(rows, schema))


def _says_more(pair: Pair) -> bool:
    """Whether a pair needs the columns in MORE."""
    plain = isinstance(pair.chosen, str) and isinstance(pair.rejected, str) and not pair.tools
    return not plain or any(turn.extras != NOTHING_MORE for turn in pair.prompt)


def _flat(turn: Message) -> dict[str, Any]:
    """A message whose calls are JSON text: in a table each kind of arguments would be a column of all calls."""
    found = {**message_dict(turn), "content": turn.content}
    if "tool_calls" in found:
        found["tool_calls"] = json.dumps(found["tool_calls"], ensure_ascii=False)
    return found
