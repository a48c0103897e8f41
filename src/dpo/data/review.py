"""The pairs of a prepared dataset as files for people: one a split, JSON Lines or Parquet."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from dpo.data.pair_file import PairFile
from dpo.data.prepare import Prepared

ROWS = 1000


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

    message = pyarrow.struct([("role", pyarrow.string()), ("content", pyarrow.string())])
    columns = {
        "id": pyarrow.string(),
        "prompt": pyarrow.list_(message),
        "chosen": pyarrow.string(),
        "rejected": pyarrow.string(),
        "strength": pyarrow.float64(),
        "group": pyarrow.string(),
    }
    schema = pyarrow.schema(columns)
    with pyarrow.parquet.ParquetWriter(path, schema) as writer:
        for start in range(0, len(pairs), ROWS):
            rows = [
                {
                    "id": pair.id,
                    "prompt": [{"role": turn.role, "content": turn.content} for turn in pair.prompt],
                    "chosen": pair.chosen,
                    "rejected": pair.rejected,
                    "strength": pair.strength,
                    "group": pair.group,
                }
                for pair in pairs[start : start + ROWS]
            ]
            writer.write_table(pyarrow.Table.from_pylist(rows, schema))
