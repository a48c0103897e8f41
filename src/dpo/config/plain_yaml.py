"""YAML that somebody else may have written, as plain data: bounded, and nothing in it is looked up or run."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import yaml
from omegaconf._utils import get_yaml_loader

from dpo.errors import ConfigError

# A run's config is 4 KB and 150 values. Aliases count as what they stand for, so a chain of them is no way around.
MOST_BYTES = 2**18
MOST_VALUES = 20_000
DEEPEST = 40


def load_yaml(path: Path) -> Any:
    """What a file holds: mappings, lists, text, numbers. `${...}` stays text. Raises ConfigError in one line."""
    return parse_yaml(read_bounded(path), str(path))


def read_bounded(path: Path) -> str:
    """The text of a config file; ConfigError when it is none, or too large to be one."""
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise ConfigError(f"{path}: not a file")
        if found.st_size > MOST_BYTES:
            raise ConfigError(f"{path}: {found.st_size:,} bytes; a config has at most {MOST_BYTES:,}")
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not readable as YAML: not UTF-8 at byte {error.start}") from None


def parse_yaml(text: str, where: str) -> Any:
    """`load_yaml` of a text; `where` names it in errors."""
    if len(text) > MOST_BYTES:
        raise ConfigError(f"{where}: {len(text):,} characters; a config has at most {MOST_BYTES:,}")
    # OmegaConf's own reader, so that 1e-5 is a number here as it is in every config.
    try:
        loader = get_yaml_loader()(text)
    except yaml.YAMLError as error:  # a character that no YAML may hold
        raise ConfigError(f"{where}: not readable as YAML: {str(error).splitlines()[0]}") from None
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _check_size(node, where)
        return loader.construct_document(node)
    except ConfigError:
        raise
    except RecursionError:
        raise ConfigError(f"{where}: nested deeper than {DEEPEST} levels") from None
    except Exception as error:  # noqa: BLE001 - any YAML fault of a foreign file is the same one-line answer
        raise ConfigError(f"{where}: not readable as YAML: {(str(error).splitlines() or ['?'])[0]}") from None
    finally:
        loader.dispose()


def _check_size(root: yaml.Node, where: str) -> None:
    """Raise ConfigError where the values, aliases written out, are too many or too deep, or hold themselves."""
    sizes: dict[int, int] = {}
    open_nodes: set[int] = set()

    def size(node: yaml.Node, depth: int) -> int:
        if id(node) in open_nodes:
            raise ConfigError(f"{where}: a value holds itself, by an alias")
        if depth > DEEPEST:
            raise ConfigError(f"{where}: nested deeper than {DEEPEST} levels")
        if isinstance(node, yaml.ScalarNode):
            return 1
        if id(node) not in sizes:
            open_nodes.add(id(node))
            parts = [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else node.value
            sizes[id(node)] = 1 + sum(size(part, depth + 1) for part in parts)
            open_nodes.remove(id(node))
        return sizes[id(node)]

    if (found := size(root, 1)) > MOST_VALUES:
        raise ConfigError(f"{where}: {found:,} values with its aliases written out; at most {MOST_VALUES:,} are read")
