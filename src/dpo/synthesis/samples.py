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
from dpo.errors import ConfigError
from dpo.records.files import write_json, write_text
from dpo.records.progress import StageProgress
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
    path = out / "samples.jsonl"
    rows = _read(path)
    asked = [prompt for prompt in prompts for _ in range(config.n)]
    if len(rows) < len(asked):
        # A row torn by a kill goes, before anything is written behind it.
        write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows.values()))
        with (
            path.open("a", encoding="utf-8") as file,
            StageProgress("answers", len(asked), len(rows)) as progress,
        ):
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
                    file.write(json.dumps(rows[index], ensure_ascii=False) + "\n")
                file.flush()
    return [rows[index] for index in range(len(asked))]


def _read(path: Path) -> dict[int, dict[str, Any]]:
    rows = {}
    for line in path.read_text(encoding="utf-8").split("\n") if path.is_file() else []:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        rows[row["index"]] = row
    return rows


def _check_settings(config: Synthesize, prompts: Sequence[Prompt], generator: Generator, out: Path) -> None:
    texts = json.dumps([[prompt.text, prompt.subject] for prompt in prompts])
    settings = {
        **generator.provenance,
        "prompts": hashlib.sha256(texts.encode("utf-8", "surrogatepass")).hexdigest()[:16],
        "n": config.n,
        "seed": config.seed,
        "sampling": plain(config.sampling),
    }
    path = out / SETTINGS
    try:
        earlier = json.loads(path.read_text())
    except (OSError, ValueError):
        write_json(path, settings)
        return
    if key := next((key for key, value in settings.items() if earlier.get(key) != value), None):
        raise ConfigError(
            f"out={out}: holds answers drawn with another {key}: {earlier.get(key)}, now {settings[key]}\n"
            "choose another folder with out=FOLDER, or remove it"
        )
