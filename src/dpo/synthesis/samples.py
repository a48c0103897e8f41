"""samples.jsonl: every answer as it was drawn. What is in it is not asked for again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dpo.config.parse import plain
from dpo.config.synthesize import Synthesize
from dpo.data.synthetic.prompts import Prompt
from dpo.errors import CheckpointError, ConfigError
from dpo.records.files import write_sealed
from dpo.records.progress import StageProgress
from dpo.records.read import json_file
from dpo.records.row_file import RowFile
from dpo.synthesis.generators import Generator

SETTINGS = "settings.json"


def draw_samples(
    config: Synthesize, prompts: Sequence[Prompt], generator: Generator, out: Path
) -> list[dict[str, Any]]:
    """`config.n` answers a prompt, in that order, going on where `out` holds some.

    A row has index, prompt, subject, sample (0 to n - 1), answer, tokens, finished, cost; `error` where the generator
    refused the prompt. Raises ConfigError when `out` holds answers of other settings.
    """
    _check_settings(config, prompts, generator, out)
    kept = RowFile(out / "samples.jsonl", f"out={out}: choose another folder with out=FOLDER, or remove it")
    rows = _by_index(kept)
    asked = [prompt for prompt in prompts for _ in range(config.n)]
    if len(rows) < len(asked):
        with StageProgress("answers", len(asked), len(rows)) as progress:
            for drawn in generator.draw(asked, set(rows), progress.advance):
                for index, answer in drawn:
                    prompt = asked[index]
                    rows[index] = {
                        "index": index,
                        "prompt": prompt.text,
                        "subject": prompt.subject,
                        "sample": index % config.n,
                        **answer,
                    }
                kept.append(rows[index] for index, _ in drawn)
    return [rows[index] for index in range(len(asked))]


def _by_index(kept: RowFile) -> dict[int, dict[str, Any]]:
    rows = kept.read()
    if wrong := next((row for row in rows if not isinstance(row.get("index"), int)), None):
        raise CheckpointError(f"{kept.path}: {json.dumps(wrong)[:60]}: no row of an answer\n{kept.way_out}")
    return {row["index"]: row for row in rows}


def _check_settings(config: Synthesize, prompts: Sequence[Prompt], generator: Generator, out: Path) -> None:
    texts = json.dumps([[prompt.text, prompt.subject] for prompt in prompts])
    settings = {
        **generator.provenance,
        "prompts": hashlib.sha256(texts.encode("utf-8", "surrogatepass")).hexdigest()[:16],
        "n": config.n,
        "seed": config.seed,
        "sampling": plain(config.sampling),
    }
    elsewhere = "choose another folder with out=FOLDER, or remove it"
    path = out / SETTINGS
    try:
        earlier = json_file(path)
    except CheckpointError as error:
        raise CheckpointError(f"{error}\nwhich settings its answers were drawn with is lost; {elsewhere}") from None
    if not earlier:
        if (out / "samples.jsonl").exists():
            raise CheckpointError(f"{path}: missing, and there are answers that were drawn with it\n{elsewhere}")
        write_sealed(path, settings)
        return
    if key := next((key for key, value in settings.items() if earlier.get(key) != value), None):
        raise ConfigError(
            f"out={out}: holds answers drawn with another {key}: {earlier.get(key)}, now {settings[key]}\n{elsewhere}"
        )
