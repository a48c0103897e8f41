"""Whether a tokenizer can say a text: what it does not know becomes an unknown token, or is left out without a word."""

from __future__ import annotations

import unicodedata
from typing import Any

HARMLESS = ("NFC", "Prepend")
# No text holds these bytes.
NOT_UTF8 = {0xC0, 0xC1, *range(0xF5, 0x100)}


def missing_bytes(definition: dict[str, Any]) -> bytes | None:
    """Bytes of UTF-8 that a tokenizer, as JSON, leaves out; None where it is not known to say texts by their bytes."""
    model, steps = definition["model"], _steps(definition.get("pre_tokenizer"), "pretokenizers")
    if not all(_harmless(step) for step in _steps(definition.get("normalizer"), "normalizers")):
        return None
    if any(step.get("behavior") == "Removed" for step in steps):
        return None
    vocabulary = model.get("vocab") or {}
    pieces = set(vocabulary) if isinstance(vocabulary, dict) else {piece for piece, _ in vocabulary}
    if model["type"] == "BPE" and any(step["type"] == "ByteLevel" for step in steps):
        return bytes(byte for byte, piece in enumerate(_byte_pieces()) if piece not in pieces and byte not in NOT_UTF8)
    if model.get("byte_fallback") and all(f"<0x{byte:02X}>" in pieces for byte in range(256)):
        return b""
    return None


def bare(text: str) -> str:
    """A text without white space and in composed form: what may differ in a text that is given back."""
    return unicodedata.normalize("NFC", "".join(text.split()))


def _byte_pieces() -> list[str]:
    """The character that stands for each byte in byte-level vocabularies, as GPT-2 drew them up."""
    printed = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printed]
    pieces = {byte: chr(byte) for byte in printed} | {byte: chr(256 + i) for i, byte in enumerate(others)}
    return [pieces[byte] for byte in range(256)]


def _steps(step: dict[str, Any] | None, inner: str) -> list[dict[str, Any]]:
    if step is None:
        return []
    return [one for part in step[inner] for one in _steps(part, inner)] if step["type"] == "Sequence" else [step]


def _harmless(step: dict[str, Any]) -> bool:
    spaces = step["type"] == "Replace" and step["pattern"] == {"String": " "} and step["content"] == "\u2581"
    return spaces or step["type"] in HARMLESS
