"""GPU, driver, bf16 and bitsandbytes' kernels, tried for real. Run as a process: importing torch may hang or crash."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from typing import Any

from dpo.diagnosis.finding import Finding

# Importing torch and bitsandbytes alone takes seconds on a busy machine.
SECONDS = 60.0


def device() -> list[Finding]:
    """The findings of a process of its own, within `SECONDS`."""
    fix = "reinstall: pip install -c constraints.txt torch bitsandbytes"
    try:
        done = subprocess.run(
            [sys.executable, "-m", "dpo.diagnosis.device"], capture_output=True, text=True, timeout=SECONDS
        )
    except subprocess.TimeoutExpired:
        return [Finding("torch", "fail", f"no answer from torch within {SECONDS:.0f} s", fix)]
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        return [Finding("torch", "fail", last[:200], fix)]
    return [Finding(**row) for row in json.loads(done.stdout.splitlines()[-1])]


def look() -> list[Finding]:
    """GPU and bf16 as torch sees them, and one 4-bit matmul against its 32-bit value."""
    import torch

    from dpo.config.hardware import Device, Precision
    from dpo.modeling.device import choose_compute

    if torch.cuda.is_available():
        free, total = (bytes_ / 1e9 for bytes_ in torch.cuda.mem_get_info())
        line = f"{torch.cuda.get_device_name()}, {free:.0f} of {total:.0f} GB free, CUDA {torch.version.cuda}"
        found = [Finding("gpu", "ok", line)]
    else:
        found = [
            Finding("gpu", "warn", "none that torch sees; the CPU is used", "for large models: a GPU and its driver")
        ]
    compute = choose_compute(Device.auto, Precision.auto)
    line = "in hardware" if compute.bf16 else f"not in hardware; {compute.device} computes in float32"
    found.append(Finding("bf16", "ok", line))
    return [*found, *kernels(compute.device)]


def kernels(place: str) -> list[Finding]:
    """bitsandbytes' NF4 on the device: the error of y = x W must be that of 4 bits, neither none nor more."""
    import torch

    fix = "use lora=lora, or reinstall: pip install -c constraints.txt bitsandbytes"
    try:
        import bitsandbytes as bnb

        torch.manual_seed(0)
        plain = torch.nn.Linear(256, 64, bias=False)
        small: Any = bnb.nn.Linear4bit(  # type: ignore[attr-defined]
            256, 64, bias=False, quant_type="nf4", compute_dtype=torch.float32
        )
        small.load_state_dict(plain.state_dict())
        small = small.to(place)
        x = torch.randn(32, 256)
        exact, found = plain(x), small(x.to(place)).cpu()
        error = float((found - exact).norm() / exact.norm())
    except Exception as error_:  # noqa: BLE001 - whatever a broken kernel raises is the finding
        return [Finding("bitsandbytes", "fail", f"4-bit matmul: {type(error_).__name__}: {error_}"[:200], fix)]
    good = 0.001 < error < 0.2
    line = f"4-bit matmul on {place}, relative error {error:.3f}"
    return [Finding("bitsandbytes", "ok" if good else "fail", line, "" if good else fix)]


if __name__ == "__main__":
    print(json.dumps([asdict(finding) for finding in look()]))
