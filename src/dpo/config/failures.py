"""What a user is told of a failure, and the exit code it becomes."""

from __future__ import annotations

import os
import re
import sys
import traceback
from collections.abc import Callable

from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from dpo import signals
from dpo.config.folder import options
from dpo.config.help.words import hint_in
from dpo.config.nearest import nearest
from dpo.config.system_faults import from_system
from dpo.errors import ConfigError, DiskFull, DpoError, Interrupted, OutOfMemory, is_out_of_memory, system_error


def exits(body: Callable[[], None]) -> None:
    """Run a verb's body; exits with the code of what failed, after saying what did."""
    try:
        body()
    except Exception as error:  # noqa: BLE001 - the one place where failures become exit codes
        sys.exit(report(error))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def report(error: BaseException) -> int:
    """Print a failure as a user should see it and return its exit code."""
    if os.environ.get("DPO_TRACEBACK") == "1":
        traceback.print_exception(error)
    known = translate(error)
    if known is None:
        traceback.print_exception(error)
        return 1
    print(
        "\n".join(f"error: {line}" if i == 0 else f"  {line}" for i, line in enumerate(str(known).splitlines())),
        file=sys.stderr,
    )
    return known.exit_code


def translate(error: BaseException) -> DpoError | None:
    """A DpoError for everything a user can cause on the command line or in YAML; None for our own faults."""
    # A disk that is full has to be said all the same.
    if (
        system_error(error) is None
        and not isinstance(error, DiskFull)
        and (number := signals.behind(error)) is not None
    ):
        return error if isinstance(error, Interrupted) else Interrupted(number)
    if isinstance(error, DpoError):
        return error
    if isinstance(error, OverrideParseException):
        text = str(getattr(error, "override", "")) or str(error).splitlines()[0]
        return ConfigError(f"{text}: not an override; write key=value, and quote values with special characters")
    if isinstance(error, MissingConfigException):
        return _missing_option(error)
    if isinstance(error, (ConfigCompositionException, OmegaConfBaseException, HydraException)):
        return ConfigError(_composition(error))
    if isinstance(error, RuntimeError) and "home directory" in str(error):
        return ConfigError("a path begins with ~ and no user of this machine; write it out, or as ./~")
    if is_out_of_memory(error):
        size = re.search(r"[Tt]ried to allocate [\d.]+ \w+", str(error))
        return OutOfMemory(
            f"out of memory{f': {size[0].lower()}' if size else ''}\n"
            "try a shorter dataset.max_length, hardware.engine=packed, lora=qlora or a smaller model"
        )
    return from_system(error)


def _missing_option(error: MissingConfigException) -> ConfigError:
    name = str(error.missing_cfg_file or "")
    group, _, option = name.strip("/").rpartition("/")
    if group:
        return ConfigError(f"{group}={option}: no such option{nearest(option, options(group))}")
    return ConfigError(str(error).splitlines()[0])


def _composition(error: BaseException) -> str:
    cause = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    text = str(error).splitlines()[0]
    key = getattr(cause, "full_key", None)
    if found := re.search(r"Could not override '([^']+)'", str(error)):
        key = found.group(1)
        if "not in struct" in str(cause) or "not in '" in str(cause):
            owner = getattr(cause, "parent_node", None)
            root = owner._get_root() if isinstance(owner, DictConfig) else None
            return f"{key}: unknown key{hint_in(key, root) if isinstance(root, DictConfig) else ''}"
        return f"{key}: {str(cause).splitlines()[0]}"
    if found := re.search(r"Could not override '?([^'\n]+)'?\.", text):
        key = found.group(1)
    if found := re.search(r"No match in the defaults list", str(error)):
        return text
    message = str(cause).splitlines()[0] if str(cause) else text
    return f"{key}: {message}" if key and not message.startswith(str(key)) else message
