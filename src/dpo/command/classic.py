"""Flags and `.dpo_config.json` of the first tool of this kind, turned into overrides by one table.

Only `dpo-train` and the `dpo_train.py` it writes come here. Imports nothing heavy.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpo.config.folder import conf_folder, options
from dpo.config.help.words import WORDS
from dpo.config.nearest import nearest
from dpo.errors import ConfigError
from dpo.records.files import read_regular

CONFIG_FILE = ".dpo_config.json"
MOST_BYTES = 1 << 20


def _model(value: str) -> list[str]:
    for name, path in _option_values("model", "path").items():
        if value.replace("-", "_") == name or value.lower() == str(path).lower():
            return [f"model={name}"]
    return ["model=custom", f"model.path={quoted(expanded(value))}"]


def _dataset(value: str) -> list[str]:
    if ("/" in value or "." in value) and Path(value).expanduser().exists():
        return ["dataset=local", f"dataset.path={quoted(expanded(value))}"]
    known = _option_values("dataset", "hub")
    for name, hub in known.items():
        if value.replace("-", "_").lower() == name or value.lower() == str(hub).lower():
            return [f"dataset={name}"]
    raise ConfigError(f"{value}: neither a dataset nor a file here{nearest(value.replace('-', '_'), known)}")


def _bits(value: int) -> list[str]:
    stored = {4: "qlora", 8: "int8", 16: "lora"}
    if value not in stored:
        raise ConfigError(f"{value}: must be 4, 8 or 16 (not quantized)")
    return [f"lora={stored[value]}"]


def _option_values(group: str, key: str) -> dict[str, object]:
    """Each option of a group with what its YAML says for `key`."""
    import yaml

    folder = conf_folder() / group
    files = {name: folder / f"{name}.yaml" for name in options(group)}
    return {name: yaml.safe_load(file.read_text()).get(key) for name, file in files.items() if file.is_file()}


@dataclass(frozen=True)
class Field:
    """A field of `.dpo_config.json`, which is also a flag: its type, what `init` writes, and its overrides here."""

    kind: type
    default: Any
    overrides: Callable[[Any], list[str]]
    flags: tuple[str, ...] = ()


def _key(key: str) -> Callable[[Any], list[str]]:
    return lambda value: [f"{key}={value}"]


# The table. Every field is a flag of its own name as well, with dashes or underscores.
FIELDS: dict[str, Field] = {
    "model_name": Field(str, "meta-llama/Llama-3.1-8B", _model, ("model",)),
    "dataset_source": Field(str, "hh-rlhf", _dataset, ("dataset", "source")),
    "lora_rank": Field(int, 8, _key("lora.rank")),
    "lora_alpha": Field(int, 16, _key("lora.alpha")),
    "quantization_bits": Field(int, 4, _bits),
    "beta": Field(float, 0.1, _key("dpo.beta")),
    "learning_rate": Field(float, 5e-7, _key("dpo.learning_rate")),
    "epochs": Field(float, 3, _key("dpo.epochs")),
    "batch_size": Field(int, 4, _key("dpo.batch_size")),
    "max_length": Field(int, 512, _key("dataset.max_length")),
    # Not a key of the config: where runs land is the environment's.
    "output_dir": Field(str, "outputs", lambda value: [f"DPO_OUTPUTS={value}"]),
}
# Flags that were never fields of the file.
FLAGS: dict[str, Field] = {"limit": Field(int, None, _key("dataset.limit"))}

# The fields that mean something to a verb, and are its flags; the other verbs only learn where runs land.
HEARD = {
    "train": (*FIELDS, *FLAGS),
    "prepare": ("model_name", "dataset_source", "max_length", "limit", "output_dir"),
    "init": tuple(FIELDS),
}
# Verbs that take files for overrides, and the groups these may set; none stands for all.
FILES: dict[str, tuple[str, ...]] = {"train": (), "prepare": ("model", "dataset")}
HYDRA_FLAGS = (
    "help", "hydra-help", "version", "cfg", "resolve", "package", "run", "multirun", "shell-completion",
    "config-path", "config-name", "config-dir", "experimental-rerun", "info",
)  # fmt: skip


def flag_names(verb: str) -> dict[str, str]:
    """flag, written with underscores -> field."""
    table = FIELDS | FLAGS
    return {flag: name for name in HEARD.get(verb, ()) for flag in (name, *table[name].flags)}


def split_flags(verb: str, argv: list[str], others: tuple[str, ...] = HYDRA_FLAGS) -> tuple[dict[str, Any], list[str]]:
    """Take the table's flags out of a command line: ({field: value}, the rest untouched).

    `--batch_size 2`, `--batch-size 2` and `--batch-size=2` are one. Raises ConfigError for a flag that is neither
    ours nor one of `others`, and for a value that is missing or of the wrong type.
    """
    known, found, rest = flag_names(verb), dict[str, Any](), list[str]()
    words = iter(argv)
    for word in words:
        flag, equals, value = word.partition("=")
        name = flag[2:].replace("-", "_")
        if flag.startswith("--") and name in known:
            value = value if equals else next(words, "")
            if not value or (not equals and value.startswith("--")):
                raise ConfigError(f"{flag}: needs a value")
            typed = _typed(flag, known[name], value)
            if known[name] in found and found[known[name]] != typed:
                _say(f"{flag}={found[known[name]]}: overridden by {flag}={value} behind it")
            found[known[name]] = typed
        elif flag.startswith("--") and flag[2:] not in others:
            names = [f"--{name.replace('_', '-')}" for name in known]
            ours = WORDS.get(name) if verb == "train" else None
            near = (
                (f"; here it is {ours}=..." if ours else "")
                or nearest(f"--{name.replace('_', '-')}", [*names, *(f"--{other}" for other in others)])
                or f"; flags: {', '.join(names)}"
            )
            raise ConfigError(f"{flag}: unknown flag of dpo-train {verb}{near}")
        else:
            rest.append(word)
    return found, rest


def _typed(where: str, name: str, value: Any) -> Any:
    kind = (FIELDS | FLAGS)[name].kind
    words = {int: "a whole number", float: "a number", str: "text"}[kind]
    wrong = ConfigError(f"{where}={value}: must be {words}")
    if kind is str:
        if not isinstance(value, str) or not value:
            raise wrong
        return value
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise wrong
    try:
        number = float(value)
        if kind is int and number != int(number):
            raise wrong
    except (ValueError, OverflowError):
        raise wrong from None
    return int(number) if kind is int or (number.is_integer() and abs(number) >= 1) else number


def read_file(path: Path) -> dict[str, Any]:
    """The fields of `.dpo_config.json`, checked; empty when there is no such file."""
    try:
        fields = json.loads(read_regular(path, MOST_BYTES).decode("utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: not readable as JSON: {str(error).splitlines()[0]}") from None
    if not isinstance(fields, dict):
        raise ConfigError(f"{path}: must hold an object of fields")
    for name in fields:
        if name not in FIELDS:
            raise ConfigError(f"{path}: {name}: unknown field{nearest(name, FIELDS)}")
    return {name: _typed(f"{path}: {name}", name, value) for name, value in fields.items()}


def to_overrides(fields: Mapping[str, Any]) -> dict[str, list[str]]:
    """{field: its overrides}, by the table."""
    found = {}
    for name, value in fields.items():
        try:
            found[name] = (FIELDS | FLAGS)[name].overrides(value)
        except ConfigError as error:
            raise ConfigError(f"{name}={error}") from None
    return found


def command_line(verb: str, argv: list[str], file: Path) -> list[str]:
    """The arguments a verb gets: the file's fields, then flags, then overrides as typed; each beats what is before.

    Prints every translation on standard error and sets where runs land.
    """
    fields = read_file(file)
    flags, rest = split_flags(verb, argv) if verb in HEARD else ({}, argv)
    if verb in FILES:
        from dpo.command.recipe import with_files

        # Here, so that a recipe wins over the file of the first tool, and a flag over the recipe.
        flagged = [word.partition("=")[0] for made in to_overrides(flags).values() for word in made]
        rest = with_files(rest, FILES[verb], flagged)
    typed = {word.lstrip("+").partition("=")[0]: word for word in rest if "=" in word}
    if "experiment" in typed and fields:
        _say(f"{file}: left aside, because the command line names an experiment")
        fields = {}
    if typed.get("lora") == "lora=full":
        fields = {name: value for name, value in fields.items() if not name.startswith("lora_")}
    heard = {"output_dir", *HEARD.get(verb, ())}
    fields = {name: value for name, value in fields.items() if name in heard and name not in flags}
    overrides: list[str] = []
    for source, values in ((str(file), fields), ("flag", flags)):
        for name, made in to_overrides(values).items():
            # A group as typed replaces the whole choice: `model=...` also the file's model.path.
            if beaten := [typed[key] for word in made if (key := word.partition("=")[0]) in typed]:
                if source == "flag":
                    _say(f"flag: {name}={values[name]}: overridden by {beaten[0]}")
                continue
            if name == "output_dir":
                # An exported DPO_OUTPUTS is part of the command and beats the file.
                if source != "flag" and "DPO_OUTPUTS" in os.environ:
                    continue
                os.environ["DPO_OUTPUTS"] = expanded(values[name])
            else:
                overrides += made
            _say(f"{source}: {name}={values[name]} -> {' '.join(made)}")
    return [*overrides, *rest]


def _say(line: str) -> None:
    print(line, file=sys.stderr)


def expanded(path: str) -> str:
    """`~` at the start made the home folder."""
    return str(Path(path).expanduser()) if path.startswith("~") else path


def quoted(value: str) -> str:
    """A value as Hydra's grammar reads it whole, whatever characters it has."""
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
