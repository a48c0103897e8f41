"""`python -m dpo.audit FOLDER`: is this folder safe to load, complete, and what its certificate says?"""

from __future__ import annotations

import sys
from pathlib import Path

from dpo.config.checks.given import check_inside
from dpo.config.failures import exits
from dpo.errors import CheckpointError, ConfigError, Refused

USAGE = """python -m dpo.audit FOLDER

Check an exported folder or an adapter folder, one line a check: no pickles or code, sane safetensors, config, end of
answers, chat template, certificate against the weights' SHA-256, model card. Loads nothing and needs no torch.
Exit code 0: all passed; 9: something in it could run code; 4: another check failed."""


def run(arguments: list[str]) -> None:
    """Print the checks; raises Refused or CheckpointError when one fails."""
    if arguments in ([], ["-h"], ["--help"]):
        print(USAGE)
        if not arguments:
            raise ConfigError("name a folder: python -m dpo.audit FOLDER")
        return
    if len(arguments) > 1:
        raise ConfigError(f"{arguments[1]}: only one folder is taken here")
    folder = Path(arguments[0].removeprefix("folder=")).expanduser()
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder")
    check_inside(folder)
    from dpo.release.audit import audit
    from dpo.streams import clean

    checks = audit(folder)
    for check in checks:
        print(clean(f"{'FAIL' if check.failed else 'ok  '}  {check.name:12} {check.detail}".replace("\n", " ")))
    failed = [check for check in checks if check.failed]
    if any(check.unsafe for check in failed):
        raise Refused(f"{folder}: not safe to load")
    if failed:
        raise CheckpointError(f"{folder}: {len(failed)} of {len(checks)} checks failed")


def main() -> None:
    """Entry point: exit code 0, or that of the error."""
    exits(lambda: run(sys.argv[1:]))


if __name__ == "__main__":
    main()
