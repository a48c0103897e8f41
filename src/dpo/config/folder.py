"""Where the YAML groups lie and which options each offers."""

from __future__ import annotations

from pathlib import Path

import dpo


def conf_folder() -> Path:
    """The folder of YAML groups: in a checkout conf/ at its top, in an installed wheel dpo/conf."""
    packaged = Path(dpo.__file__).parent / "conf"
    return packaged if packaged.is_dir() else Path(dpo.__file__).parents[2] / "conf"


def options(group: str) -> list[str]:
    """Names a group offers, without its schema nodes and shared values (whose files begin with `shared`)."""
    # Every model is a generator, see config/synthesize.py.
    groups = (group, "model") if group == "generator" else (group,)
    folders = [root / name for root in (conf_folder(), Path.cwd() / "conf") for name in groups]
    names = {path.stem for folder in folders if folder.is_dir() for path in folder.glob("*.yaml")}
    return sorted(name for name in names if not name.startswith("shared"))
