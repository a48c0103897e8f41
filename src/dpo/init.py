"""`dpo-train init`: a folder to start from, in the form the first tool of this kind made it.

dpo-train init --model meta-llama/Llama-3.1-8B --dataset hh-rlhf

Writes .dpo_config.json, dpo_requirements.txt and dpo_train.py. Every field of the config is a flag; --force
overwrites files that are there with other contents.
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from dpo import __version__
from dpo.command.classic import CONFIG_FILE, FIELDS, split_flags, to_overrides
from dpo.errors import ConfigError
from dpo.records.files import write_text

# Below this a LoRA adapter hardly moves in an ordinary run.
LORA_RATE = 5e-6

SCRIPT = f'''"""Trains with the settings of {CONFIG_FILE} beside this file, by the project dpo-train.

Flags (--beta 0.05) and overrides (dpo.scheduler=cosine) may follow and win over the file.
"""

import sys
from pathlib import Path

from dpo.cli import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]], Path(__file__).with_name("{CONFIG_FILE}"))
'''


def init(fields: dict[str, Any], folder: Path, force: bool) -> list[Path]:
    """Write the three files, or none when one is there with other contents and `force` is off; returns them."""
    from dpo.config.schema import Config
    from dpo.pages.defaults import composed

    config = {name: fields.get(name, field.default) for name, field in FIELDS.items()}
    made = to_overrides(config)
    composed("config", Config, [word for name, words in made.items() if name != "output_dir" for word in words])
    files = {
        folder / CONFIG_FILE: json.dumps(config, indent=2) + "\n",
        folder / "dpo_requirements.txt": requirements(),
        folder / "dpo_train.py": SCRIPT,
    }
    other = [path.name for path, text in files.items() if path.exists() and path.read_text(encoding="utf-8") != text]
    if other and not force:
        raise ConfigError(f"{', '.join(other)}: already here with other contents; --force overwrites, nothing written")
    for path, text in files.items():
        write_text(path, text)
    return list(files)


def requirements() -> str:
    """The packages this project needs, at the versions installed here; what is not installed stays a range."""
    lines = [
        f"# What dpo-train {__version__} needs, at the versions it was written with; dpo-train itself comes beside."
    ]
    for requirement in map(Requirement, requires("dpo-train") or []):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            lines.append(f"{requirement.name}=={version(requirement.name).split('+')[0]}")
        except PackageNotFoundError:
            lines.append(str(requirement))
    return "\n".join(lines) + "\n"


def run(argv: list[str]) -> None:
    """Parse flags and write; raises ConfigError for anything that cannot be."""
    if {"-h", "--help"} & set(argv):
        flags = "".join(f"  --{name.replace('_', '-'):20} {field.default}\n" for name, field in FIELDS.items())
        print(f"{__doc__}\nFlags and what is written without them (--model and --dataset are short forms):\n{flags}")
        return
    fields, rest = split_flags("init", argv, ("force",))
    if extra := [word for word in rest if word != "--force"]:
        raise ConfigError(f"{extra[0]}: init takes only flags, as --beta 0.1")
    for path in init(fields, Path(), "--force" in rest):
        print(path)
    config = json.loads(Path(CONFIG_FILE).read_text())
    if config["learning_rate"] < LORA_RATE:
        print(
            f"note: learning rate {config['learning_rate']:g} barely moves a LoRA adapter; "
            "try --learning-rate 5e-6 to 5e-5"
        )
    print("next: dpo-train train, or python dpo_train.py")


def main() -> None:
    """Entry point: exit code 0, or that of the error."""
    from dpo.config.failures import exits

    exits(lambda: run(sys.argv[1:]))


if __name__ == "__main__":
    main()
