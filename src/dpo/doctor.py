"""`python -m dpo.doctor`: can this machine run the default job, and what will not work? One line each, with a fix.

python -m dpo.doctor           exit code 0 when the default job can run, else 1
python -m dpo.doctor --json    the same as one JSON list
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict

from dpo.config.failures import exits
from dpo.config.nearest import nearest
from dpo.diagnosis import device, machine, network, packages
from dpo.diagnosis.finding import Finding
from dpo.errors import ConfigError

# name -> (probe, seconds it may take, what it means when it takes longer)
PROBES: dict[str, tuple[Callable[[], list[Finding]], float, str]] = {
    "python": (packages.python, 5, "fail"),
    "packages": (packages.packages, 10, "fail"),
    "pins": (packages.pins, 10, "warn"),
    "weights": (packages.weights, 10, "fail"),
    "disk": (machine.disk, 5, "warn"),
    "memory": (machine.memory, 5, "warn"),
    "driver": (machine.driver, machine.DRIVER_SECONDS + 2, "warn"),
    "torch": (device.device, device.SECONDS + 5, "fail"),
    "hub": (network.hub, 10, "warn"),
    "wandb": (network.wandb, 10, "warn"),
}


def examine(probes: Mapping[str, tuple[Callable[[], list[Finding]], float, str]] = PROBES) -> list[Finding]:
    """Run all probes at once; one that takes too long or raises is a finding itself."""
    results: dict[str, list[Finding]] = {}

    def run(name: str) -> None:
        try:
            results[name] = probes[name][0]()
        except Exception as error:  # noqa: BLE001 - a probe that breaks is what the doctor is for
            results[name] = [Finding(name, "fail", f"{type(error).__name__}: {error}"[:200], "see the line")]

    began, threads = time.monotonic(), {}
    for name in probes:
        threads[name] = threading.Thread(target=run, args=(name,), daemon=True)
        threads[name].start()
    found = []
    for name, (_, limit, level) in probes.items():
        threads[name].join(max(0.0, began + limit - time.monotonic()))
        late = [Finding(name, level, f"no answer within {limit:.0f} s", "look at the network, disk or driver")]
        found += results.get(name, late)
    return found


def main() -> None:
    """Entry point: exit code 0, 1 when the default job cannot run here, or that of the error."""
    exits(lambda: run(sys.argv[1:]))


def run(arguments: list[str]) -> None:
    """Probe and print; raises ConfigError for an unknown flag."""
    if {"-h", "--help"} & set(arguments):
        print(__doc__)
        return
    if unknown := [word for word in arguments if word != "--json"]:
        raise ConfigError(f"{unknown[0]}: unknown flag of doctor{nearest(unknown[0], ['--json'])}")
    found = examine()
    if arguments:
        print(json.dumps([asdict(finding) for finding in found], indent=2))
    else:
        for one in found:
            print(f"{one.level:4}  {one.name:12}  {one.line}{f'; fix: {one.fix}' if one.fix else ''}")
    failed = any(one.level == "fail" for one in found)
    if not arguments:
        print("the default job cannot run here yet" if failed else "the default job can run here")
    sys.exit(int(failed))


if __name__ == "__main__":
    main()
