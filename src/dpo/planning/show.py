"""A forecast as one screen of text."""

from __future__ import annotations

from dpo.config.schema import Config
from dpo.planning.card import CONTEXT
from dpo.planning.measure import Measured

GIB = 1 << 30


def show(config: Config, found: Measured) -> str:
    """What was measured, what it was measured on, and the verdict."""
    total = found.peak + CONTEXT
    verdict = "fits" if found.fits else "does not fit"
    parts = sorted(((size, name) for name, size in found.parts.items() if size > 0), reverse=True)
    return "\n".join(
        [
            f"{config.model.path}, {found.parameters / 1e9:.2f}e9 parameters, on a card of "
            f"{config.hardware.memory_gb:g} GB: {verdict}",
            f"  {found.line}",
            f"  peak {total / GIB:.2f} GiB of {found.memory / GIB:.2f}: torch reserves {found.peak / GIB:.2f}, "
            f"context and kernels about {CONTEXT / GIB:.2f}; reference pass {found.reference_peak / GIB:.2f}",
            "  at the peak " + ", ".join(f"{name} {size / GIB:.2f} GiB" for size, name in parts),
            f"  measured on a micro-batch of {found.tokens} tokens, {found.flops / 1e12:.1f} TFLOP; no data was read: "
            f"pairs are the longest that dataset.max_length={config.dataset.max_length} allows, {found.longest} tokens",
            "  by shapes alone on this machine; values, kernels and time need the card",
        ]
    )


def show_remedy(words: str, found: Measured, before: Measured) -> str:
    """What a change gains, measured as the command was."""
    verdict = "fits" if found.fits else "does not fit"
    gained = (before.peak - found.peak) / GIB
    return f"  with {words}: {verdict}, peak {(found.peak + CONTEXT) / GIB:.2f} GiB, {gained:.2f} less"
