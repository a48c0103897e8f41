"""What a kept log-prob hangs on, as keys of the reference cache."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from importlib.metadata import version
from typing import Protocol

VERSION = 2
"""Goes into every key: raise it when the meaning of an entry changes."""
LIBRARIES = ("torch", "transformers", "bitsandbytes")
"""Another version of one may round otherwise."""


class Tokens(Protocol):
    """The token ids of a pair; `id` names it among those of one call."""

    @property
    def id(self) -> str:
        """Its name."""

    @property
    def prompt_ids(self) -> Sequence[int]:
        """Token ids both answers follow."""

    @property
    def chosen_ids(self) -> Sequence[int]:
        """Token ids of the better answer."""

    @property
    def rejected_ids(self) -> Sequence[int]:
        """Token ids of the other."""

    @property
    def given(self) -> Sequence[Sequence[tuple[int, int]]]:
        """Of both, spans of tokens that do not count."""


def context_key(
    *,
    base: str,
    quantization: str,
    adapter: str,
    precision: str,
    device: str,
    attention: str,
    ld_alpha: float | None = None,
) -> str:
    """Hash of all that a reference log-prob depends on besides its tokens.

    Args:
        base: fingerprint of the base weights.
        quantization: canonical text of the quantization, or "none".
        adapter: fingerprint of the adapter the run starts from, or "none".
        precision: dtype the forward computes in.
        device: device type and what decides on its kernels, see `modeling.device.kernels`.
        attention: attention path with its engine, such as packed-sdpa.
        ld_alpha: weight of the tokens beyond the shorter answer, which makes the sums other ones; None for plain sums.
    """
    libraries = [f"{name} {version(name)}" for name in LIBRARIES]
    parts = [str(VERSION), base, quantization, adapter, precision, device, attention, *libraries]
    if ld_alpha is not None:
        parts.append(f"ld_alpha={ld_alpha!r}")
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def entry_key(context: str, pair: Tokens) -> bytes:
    """Hash of the context, the token ids, where the prompt ends and which of them count; ids, strengths and sources of
    rows say nothing."""
    digest = hashlib.sha256(context.encode())
    for ids in (pair.prompt_ids, pair.chosen_ids, pair.rejected_ids):
        digest.update(struct.pack("<q", len(ids)))
        digest.update(struct.pack(f"<{len(ids)}q", *ids))
    if any(pair.given):
        digest.update(repr([list(map(tuple, spans)) for spans in pair.given]).encode())
    return digest.digest()
