"""The words of a command line before Hydra sees them: secrets, bare folders, free-form keys, flags."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NoReturn

from dpo.config.composing.hydra_keys import check_words
from dpo.config.help.words import WORDS
from dpo.config.nearest import nearest
from dpo.errors import ConfigError, Refused

SECRET = re.compile(
    r"(hf_[A-Za-z0-9]{20,}|\bsk-[A-Za-z0-9_-]{20,}|wandb_v1_[A-Za-z0-9_]{20,}"
    r"|(?:api_?key|token|password|secret)=\S+)",
    re.IGNORECASE,
)
# A W&B key of old has no mark of its own. A commit looks the same, as a revision and in the hub's cache as a folder.
HEX = re.compile(r"(?<!revision=)\b[0-9a-f]{40}\b(?!/)", re.IGNORECASE)
IN_PATH = re.compile(r"(?<=/)[^/\s,=]+")

FREE_KEY = re.compile(
    r"^(?=(dpo\.trainer|dataset\.(chat_template_kwargs|columns|overrides)|sweep\.evaluation)(\.|=\{))"
)

PLUS = re.compile(r"^\+(?=(experiment|sweep)=)")

# Hydra's flags that take the next word, which is then no folder.
WITH_VALUE = (
    "--cfg", "-c", "--package", "-p", "--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd",
    "--experimental-rerun",
)  # fmt: skip
# Those that take none.
ALONE = (
    "--help", "-h", "--hydra-help", "--version", "--resolve", "--run", "-r", "--multirun", "-m", "--shell-completion",
    "-sc", "--info", "-i",
)  # fmt: skip


def arguments(argv: list[str], positional: str | None) -> list[str]:
    """Hydra's words for ours: bare folders become the positional key; a word that looks like a secret is refused."""
    folders, rest = [], []
    words = iter(argv)
    for argument in words:
        if found := SECRET.search(argument) or HEX.search(IN_PATH.sub("", argument)):
            name = argument.split("=")[0] if "=" in argument else f"{found.group()[:4]}..."
            raise Refused(
                f"{name}: looks like a secret; pass secrets by environment variable (HF_TOKEN, WANDB_API_KEY)"
            )
        if argument in WITH_VALUE:
            rest += [argument, *itertools.islice(words, 1)]
        elif positional and not argument.startswith("-") and ("=" not in argument or _is_path(argument)):
            folders.append(str(Path(argument).expanduser()))
        else:
            argument = re.sub(r"=~/", f"={Path.home()}/", argument)
            # Keys of free-form mappings are new ones to Hydra, which would ask for a plus sign.
            # Groups that start empty are in our defaults list: the plus that other projects need is one too many.
            rest.append(FREE_KEY.sub("++", PLUS.sub("", argument)))
    check_words(word for word in rest if is_override(word))
    if folders and positional:
        if positional.endswith("+"):
            rest.append(f"{positional[:-1]}=[{','.join(map(quoted, folders))}]")
        elif len(folders) == 1:
            rest.append(f"{positional}={quoted(folders[0])}")
        else:
            raise ConfigError(f"{folders[1]}: only one folder is taken here")
    return rest


def _is_path(word: str) -> bool:
    """Whether a word with `=` in it is a folder that somebody called so, and no override."""
    return os.path.exists(os.path.expanduser(word))


def quoted(value: object) -> str:
    """A value as Hydra reads it back, whatever is in it: a quote, a backslash, a word it would interpolate."""
    # Backslashes count only before a quote, and before `${`, where an odd one keeps it as text.
    text = re.sub(r"(\\*)('|$)", lambda found: found[1] * 2 + ("\\'" if found[2] else ""), str(value), flags=re.DOTALL)
    return f"'{text}'"


def overrides_first(argv: list[str]) -> list[str]:
    """Overrides side by side, then flags: Hydra's parser takes only one run of overrides."""
    return sorted(argv, key=lambda argument: not is_override(argument))


def is_override(argument: str) -> bool:
    """Whether a word sets or deletes a key."""
    return not argument.startswith("-") and ("=" in argument or argument.startswith("~"))


def overridden(words: Iterable[str]) -> list[str]:
    """A line a setting that a later one of the same key replaces: the last one counts, but the first may be a slip."""
    last: dict[str, str] = {}
    lines = []
    for word in filter(is_override, words):
        key = word.lstrip("+").partition("=")[0]
        if last.get(key, word) != word:
            lines.append(f"{last[key].lstrip('+')}: overridden by {word.lstrip('+')} behind it")
        last[key] = word
    return lines


def check_flags(argv: list[str]) -> bool:
    """Whether a flag only asks to be shown something.

    One line for a flag Hydra does not have, where its parser would print its whole usage.
    """
    from hydra._internal.utils import get_args_parser

    parser = get_args_parser()

    def refuse(message: str) -> NoReturn:
        if unknown := re.match(r"unrecognized arguments: (\S+)", message):
            flag = unknown.group(1)
            known = [name for action in parser._actions for name in action.option_strings]
            ours = WORDS.get(flag.partition("=")[0].lstrip("-").replace("-", "_"))
            near = f"; here it is {ours}=..." if ours else nearest(flag, known)
            message = f"{flag}: unknown flag{near}; settings are written key=value"
        raise ConfigError(message.removeprefix("argument "))

    parser.error = refuse  # type: ignore[method-assign]
    found = parser.parse_args(argv)
    # The first two would take another primary config in place of the typed one, the third unpickles a file.
    for flag, value in (
        ("--config-path", found.config_path),
        ("--config-name", found.config_name),
        ("--experimental-rerun", found.experimental_rerun),
    ):
        if value is not None:
            raise Refused(f"{flag}: not taken; options of your own lie in ./conf, or --config-dir FOLDER")
    shows = ("help", "hydra_help", "cfg", "info", "shell_completion")
    return any(getattr(found, name) not in (None, False) for name in shows)
