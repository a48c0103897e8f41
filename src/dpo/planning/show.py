"""A forecast as one screen of text, and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from dpo.config.schema import Config
from dpo.planning.card import CONTEXT
from dpo.planning.cost import Time
from dpo.planning.grid import Job
from dpo.planning.measure import Measured

GIB = 1 << 30


def size(taken: float) -> str:
    """Bytes for people."""
    return f"{taken / GIB:.2f} GiB" if taken >= GIB / 10 else f"{taken / 2**20:.1f} MiB"


def tera(operations: float) -> str:
    """In TFLOP."""
    return f"{operations / 1e12:.3g}" if operations < 1e15 else f"{operations / 1e12:,.0f}"


def verdict(found: Measured) -> str:
    """In words: as planned, in smaller micro-batches only, or not at all."""
    if found.fits:
        return "fits"
    return "does not fit" if found.capacity and found.at_one_pair > found.capacity else "fits in smaller micro-batches"


def show(config: Config, found: Measured, times: list[Time], smallest: str) -> str:
    """What was measured, what it was measured on, and the verdict."""
    parts = sorted(((taken, name) for name, taken in found.parts.items()), reverse=True)
    work = found.amounts
    on = f"a card of {config.hardware.memory_gb:g} GB" if found.memory else "this machine's CPU"
    context = CONTEXT if found.memory else 0
    of = f" of {size(found.memory)}" if found.memory else ""
    beside = f"context and kernels about {size(CONTEXT)}; " if found.memory else ""
    return "\n".join(
        [
            f"{config.model.path}, {found.parameters / 1e9:.2f}e9 parameters, on {on}: {verdict(found)}",
            f"  {found.line}",
            f"  peak {size(found.peak + context)}{of}: torch reserves {size(found.peak)}, {beside}"
            f"reference pass {size(found.reference_peak)}, evaluation {size(found.evaluation_peak)}",
            "  at the peak " + ", ".join(f"{name} {size(taken)}" for taken, name in parts),
            f"  largest micro-batch {found.tokens} tokens, longest pair {found.longest}; {found.known}",
            *([f"  {smallest}"] if smallest else []),
            f"  {work.steps} steps, {work.pairs} pairs, {work.tokens} tokens; TFLOP: training "
            f"{tera(work.train_flops)}, reference {tera(work.reference_flops)} (free where cached), "
            f"evaluation {tera(work.evaluation_flops)}; TRL's default steps {tera(work.trl_flops)}",
            *(f"  {time}" for time in times),
        ]
    )


def show_remedy(words: str, found: Measured, before: Measured) -> str:
    """What a change gains, measured as the command was."""
    gained = (before.peak - found.peak) / GIB
    return f"  with {words}: {verdict(found)}, peak {size(found.peak + CONTEXT)}, {gained:.2f} GiB less"


def as_json(config: Config, found: Measured, times: list[Time]) -> dict[str, Any]:
    """The same facts for programs: bytes, tokens, operations, seconds, money."""
    facts = asdict(found) | {"amounts": asdict(found.amounts) | {"flops": found.amounts.flops}}
    return {
        "name": config.name,
        "model": config.model.path,
        "beta": config.dpo.beta,
        "memory_gb": config.hardware.memory_gb,
        "verdict": verdict(found),
        **facts,
        "times": [asdict(time) for time in times],
    }


def show_sum(jobs: Sequence[Job], times: Sequence[Sequence[Time]]) -> str:
    """All jobs of a sweep together; the reference pass counts once."""
    flops = sum(job.found.amounts.flops for job in jobs)
    reference = sum(job.found.amounts.reference_flops for job in jobs)
    lines = [f"{len(jobs)} jobs: {tera(flops)} TFLOP, of it the reference pass {tera(reference)}, once"]
    for of_device in zip(*times, strict=False):
        least, most = sum(time.least for time in of_device), sum(time.most for time in of_device)
        whole = Time(of_device[0].on, least, most, "one after the other", sum(time.money for time in of_device))
        lines.append(f"  {whole}")
    return "\n".join(lines)
