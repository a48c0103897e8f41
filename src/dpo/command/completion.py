"""Shell completion of `dpo-train`: verbs and flags are ours, groups, options and keys are Hydra's."""

from __future__ import annotations

import contextlib
import glob
import importlib
import importlib.util
import io
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from dpo.command.classic import flag_names

ZSH = (
    "(( $+functions[compdef] )) || { autoload -Uz compinit && compinit -u; }\nautoload -Uz bashcompinit && bashcompinit"
)


def complete(arguments: list[str], verbs: Mapping[str, Any], aliases: Iterable[str]) -> None:
    """`-sc install=SHELL` prints the script a shell evaluates, `query=SHELL` the choices for $COMP_LINE."""
    if not any(word.startswith("query=") for word in arguments):
        if "install=zsh" in arguments:
            # Hydra's script for bash serves zsh once these are loaded.
            print(ZSH)
            arguments = ["install=bash"]
        # Hydra's script calls the program it came from, whatever verb is typed; any app prints the same one.
        _hydra("dpo.train", ["-sc", *arguments])
        if "install=fish" in arguments:
            # Run folders are positional, and Hydra's line leaves files out.
            print(f"complete -c {Path(sys.argv[0]).name} --force-files")
        return
    line = os.environ.get("COMP_LINE", "").lstrip()
    words = line.split()
    current = "" if line.endswith(" ") or len(words) < 2 else words[-1]
    before = words[1:] if not current else words[1:-1]
    # fish reads a choice a line.
    between = "\n" if "query=fish" in arguments else " "
    if not before:
        print(between.join(name for name in [*verbs, *aliases] if name.startswith(current)))
    elif current.startswith("-"):
        flags = sorted(f"--{flag.replace('_', '-')}" for flag in flag_names(before[0]))
        print(between.join(flag for flag in [*flags, "--help", "--cfg"] if flag.startswith(current)))
    else:
        print(between.join(_keys(dict.fromkeys(aliases), before, current, verbs, arguments)))


def _keys(aliases: Iterable[str], before: list[str], current: str, verbs: Any, arguments: list[str]) -> list[str]:
    name = "prepare" if before[0] in aliases else before[0]
    if name not in verbs or importlib.util.find_spec(verbs[name].module) is None:
        return []
    runs = _runs(verbs[name].runs, current)
    overrides = [word for word in before[1:] if "=" in word and not word.startswith("-")]
    os.environ["COMP_LINE"] = " ".join(["dpo-train", *overrides, current])
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()), contextlib.suppress(SystemExit):
        _hydra(verbs[name].module, ["-sc", *arguments])
    # Typed nodes and shared values are files of a group, but nothing to choose; Hydra's own keys only when asked for.
    return runs + [
        word
        for word in out.getvalue().split()
        if not word.partition("=")[2].startswith(("base_", "shared"))
        and (not word.startswith("hydra") or current.startswith("hydra"))
    ]


def _runs(key: str | None, current: str) -> list[str]:
    """What a word that names a run could become, with `key=` before it or bare: names `status` prints, and folders."""
    begun, value = ("", current) if "=" not in current else (f"{key}=", current.partition("=")[2])
    if key is None or not current.startswith(begun):
        return []
    from dpo.config.roots import outputs_root
    from dpo.records.naming import names

    folders = [f"{path}/" for path in sorted(glob.glob(f"{glob.escape(value)}*")) if os.path.isdir(path)]
    return [f"{begun}{word}" for word in (*names(outputs_root()), *folders) if word.startswith(value)]


def _hydra(module: str, argv: list[str]) -> None:
    # The script registers the first word's last part: the command as it was typed.
    sys.argv = [sys.argv[0], *argv]
    importlib.import_module(module).main()
