"""The model card (README.md) of an adapter or an export: what a stranger must know before using it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

import jinja2
import yaml

from dpo.errors import CheckpointError
from dpo.pages.defaults import as_overrides
from dpo.pages.headline import COLUMNS, caption, figure_rows, notes
from dpo.pages.run import cost_table
from dpo.records.read import RunFiles, json_file, read_run, read_summary
from dpo.records.redaction import redact
from dpo.release.certificate import (
    CERTIFICATE,
    DIFFERENCE_COLUMNS,
    MODEL_COLUMNS,
    difference_rows,
    model_rows,
    verdict,
)
from dpo.release.licences import UNKNOWN, Licence, base_licence, dataset_licence, hub_licence, is_hub_id, public_name
from dpo.streams import clean

Row = dict[str, Any]
# Everything Markdown or HTML could take for more than text.
_SPECIAL = re.compile(r"([\\`*_{}\[\]#|~$])")


DPO = "Direct Preference Optimization (DPO)"
# Losses of other methods.
OBJECTIVES = {
    "simpo": "Simple Preference Optimization (SimPO)",
    "cpo": "Contrastive Preference Optimization (CPO)",
    "orpo": "Odds Ratio Preference Optimization (ORPO)",
    "kto": "Kahneman-Tversky Optimization (KTO)",
}


def model_card(run: Path, folder: Path | None = None) -> str:
    """README.md for `folder`, an export of `run`; without a folder, for the run's own final weights.

    Every text from outside is escaped and stripped of secrets and of where things lie on this machine.
    """
    files = read_run(run)
    config, record = files.config, files.record
    certificate = json_file(folder / CERTIFICATE) if folder is not None else {}
    base = public_name(str(config["model"]["path"]))
    dataset = _dataset_name(config["dataset"])
    summaries = [_summary(run, name) for name in files.evaluations]
    adapter = folder is None and "rank" in config["lora"]
    # Only an export asks the hub: the end of a training run waits for nobody.
    licence, data_licence = _licences(config, record, base, dataset, ask=folder is not None)
    facts = {
        "name": config["name"],
        "base": base,
        "objective": OBJECTIVES.get(config["dpo"]["loss"][0], DPO),
        "single": bool(files.data.get("single_answers")),
        "adapter": adapter,
        "full": "rank" not in config["lora"],
        "config": config,
        "dataset": dataset,
        "data": files.data,
        "refused": {k: v["count"] for k, v in files.data.get("refused", {}).items()},
        "cut": {k: v["pairs"] for k, v in files.data.get("truncation", {}).items() if v.get("pairs")},
        "record": record,
        "run": run.resolve().name,
        "command": _command(config),
        "settings": _settings(config),
        "results": [result for result in map(_result, summaries) if result],
        "unreadable": [n for n, s in zip(files.evaluations, summaries, strict=True) if _result(s) is None],
        "certificate": certificate,
        "certificate_tables": [
            _table(MODEL_COLUMNS, model_rows(certificate)),
            _table(DIFFERENCE_COLUMNS, difference_rows(certificate)),
        ]
        if certificate
        else [],
        "verdict": verdict(certificate) if certificate else "",
        "cost": _cost(files),
        "base_licence": licence.words,
        "dataset_licence": data_licence.words,
    }
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        undefined=jinja2.ChainableUndefined,
        autoescape=False,  # noqa: S701 - Markdown, not HTML: `finalize` escapes every value for both
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    body = environment.get_template("card.md.jinja").render(**facts)
    return f"---\n{_head(base, licence, dataset, adapter, certificate)}---\n{body}"


def _licences(config: Row, record: Row, base: str, dataset: str, ask: bool) -> tuple[Licence, Licence]:
    """Licences of base and data. A file or folder of one's own has none that is known here, whatever it is called."""
    of_base = of_data = UNKNOWN
    if record.get("revision"):
        of_base = (hub_licence(base) if ask else None) or base_licence(base)
    elif str(config["model"]["path"]).startswith("embedded:"):
        of_base = base_licence(base)
    if parts := config["dataset"].get("overrides"):
        known = {name: _licences({**config, "dataset": part}, record, base, _dataset_name(part), ask)[1]
                 for name, part in parts.items()}  # fmt: skip
        of_data = Licence("; ".join(f"{name}: {licence.words}" for name, licence in known.items()))
    elif not config["dataset"].get("path"):
        hub = ask and is_hub_id(dataset)
        of_data = (hub_licence(dataset, dataset=True) if hub else None) or dataset_licence(dataset)
    return of_base, of_data


def _summary(run: Path, name: str) -> Row:
    """An evaluation's summary; empty where it is damaged, which the card says."""
    try:
        return read_summary(run, name)
    except CheckpointError:
        return {}


def _result(summary: Row) -> Row | None:
    """What an evaluation found; None when another version wrote it in a form this one cannot read, or it is torn."""
    if not summary:
        return None
    try:
        return {"caption": caption(summary), "table": _table(COLUMNS, figure_rows(summary)), "notes": notes(summary)}
    except (AttributeError, TypeError, ValueError):
        return None


class Markdown(str):
    """Text of our own making that is Markdown already."""


def _finalize(value: Any) -> Any:
    return value if isinstance(value, Markdown) else Markdown(escape(value))


def escape(value: Any) -> str:
    """One line of text that Markdown and HTML show as it is; secrets, home folders and terminal escapes are out."""
    text = " ".join(clean(redact(str(value))).split()).replace(str(Path.home()), "~")
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _SPECIAL.sub(r"\\\1", text)


def code(value: Any) -> Markdown:
    """One line in a code block; nothing in it can end the block."""
    text = " ".join(clean(redact(str(value))).split()).replace(str(Path.home()), "~")
    return Markdown(text.replace("`", "'"))


def _table(columns: Any, rows: list[list[Any]]) -> Markdown:
    def line(cells: Any) -> str:
        return "| " + " | ".join(escape("" if cell is None else cell) for cell in cells) + " |\n"

    return Markdown(line(columns) + "| " + " | ".join("---" for _ in columns) + " |\n" + "".join(map(line, rows)))


def _head(base: str, licence: Licence, dataset: str, adapter: bool, certificate: Row) -> str:
    """The YAML block the hub reads; ids only where they can be ids."""
    gguf = certificate.get("format") == "gguf"
    head: Row = {
        "base_model": base,
        "library_name": "peft" if adapter else "gguf" if gguf else "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["dpo", "trl", *(["lora"] if adapter else [])],
    }
    if not adapter:
        head["base_model_relation"] = "quantized" if certificate.get("format") in ("int8", "gguf") else "finetune"
    if licence.identifier is not None:
        head["license"] = licence.identifier
    if is_hub_id(dataset):
        head["datasets"] = [dataset]
    return redact(yaml.safe_dump(head, sort_keys=False, allow_unicode=True))


def _dataset_name(dataset: Mapping[str, Any]) -> str:
    """Hub id, `synthetic`, or the name of a file, never where it lies."""
    if parts := dataset.get("overrides"):
        return " + ".join(map(_dataset_name, parts.values()))
    if dataset.get("path"):
        return Path(str(dataset["path"])).name
    return str(dataset.get("hub") or dataset.get("id") or dataset["source"])


def _settings(config: Row) -> list[tuple[Markdown, Markdown]]:
    """(key, value) of the groups that shape the weights."""
    found: list[tuple[Markdown, Markdown]] = []

    def walk(prefix: str, node: Any) -> None:
        if isinstance(node, dict) and node:
            for key, value in node.items():
                walk(f"{prefix}.{key}" if prefix else str(key), value)
        elif node not in (None, {}, []):
            found.append((code(prefix), code(_public_word(str(node)))))

    for group in ("seed", "model", "dataset", "lora", "dpo", "hardware"):
        walk(group, config.get(group))
    return found


def _command(config: Row) -> Markdown:
    """A command that trains the same again; paths of this machine are their last part."""

    def public(text: str) -> str:
        return _public_word(text).replace("<", "\u2039").replace(">", "\u203a")

    return code(shlex.join(["python", "-m", "dpo.train", *as_overrides(config, public)]))


def _public_word(value: str) -> str:
    """A path as its last part: where things lie here, and whose home it is, is nobody's business."""
    return PurePath(value).name if "/" in value and not is_hub_id(value) else value


def _cost(files: RunFiles) -> Markdown:
    """What each phase took, and what money that was."""
    found = cost_table(files.ledger)
    return Markdown(f"{_table(found['columns'], found['rows'])}\n{escape(found['note'])}")
