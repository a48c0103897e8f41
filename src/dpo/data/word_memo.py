"""Encoding text word by word with a memory, where that provably gives the ids of encoding it whole.

Byte-level BPE tokenizers first cut text with a regular expression and never join what it cut. Take a space with a
character behind it that is no white space. In the expressions listed here no match contains both that space and what
stands before it: a match that is all white space may not be followed by another character unless it is one character
long, one that ends in line ends contains no space behind them, and in all others a space can only come first. The
matches before the space are those the text would have if it ended there. So text can be encoded word by word, each
with its space in front, and words repeat: nearly all are looked up, which is several times faster than encoding.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from dpo.data.packed import pack

# Pre-tokenizer expressions for which the above was checked: Llama 3, and Qwen 2 to 3 (digits one by one).
SPLITS = {
    rf"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    for digits in (r"\p{N}{1,3}", r"\p{N}")
}
# White space, in this and other versions of Unicode.
_SPACE = r"\s\u180e\u200b\ufeff"
_CUT = re.compile(f" (?=[^{_SPACE}])")
# Words kept, at some 200 bytes each.
CAPACITY = 500_000

EncodeBatch = Callable[[list[str]], list[bytes]]


def cuts_at_spaces(definition: dict[str, Any]) -> bool:
    """Whether a tokenizer, as JSON, is known to cut before each space that a word follows."""
    if (definition.get("normalizer") or {"type": "NFC"})["type"] != "NFC":
        return False
    model = definition["model"]
    if model["type"] != "BPE" or model.get("dropout") or model.get("continuing_subword_prefix"):
        return False
    for token in definition["added_tokens"]:
        if token["lstrip"] or token["rstrip"] or token["single_word"] or re.search(r"\s", token["content"]):
            return False
        if token["normalized"] and definition.get("normalizer"):  # found where the text does not show it yet
            return False
    return _cuts(definition.get("pre_tokenizer"))


def _cuts(step: dict[str, Any] | None) -> bool:
    if step is None:
        return False
    if step["type"] == "ByteLevel":  # with GPT-2's own expression
        return bool(step["use_regex"]) and not step["add_prefix_space"]
    if step["type"] != "Sequence":
        return False
    *first, last = step["pretokenizers"]
    if last["type"] != "ByteLevel" or last["add_prefix_space"]:
        return False
    return not last["use_regex"] and len(first) == 1 and first[0]["type"] == "Split" and _known_split(first[0])


def _known_split(step: dict[str, Any]) -> bool:
    return step["pattern"].get("Regex") in SPLITS and step["behavior"] == "Isolated" and not step["invert"]


class WordMemo:
    """Encodes like `encode_batch`, which must cut at spaces; `added` tokens are cut out first, as it does itself.

    Keys of the memory: a word behind a space as it is, what begins a segment with two spaces in front. The first
    never begin with white space, so the two cannot be mixed up.
    """

    def __init__(self, encode_batch: EncodeBatch, added: dict[str, int]) -> None:
        self._encode_batch = encode_batch
        longest_first = sorted(added, key=len, reverse=True)
        self._segments = re.compile(f"({'|'.join(map(re.escape, longest_first)) or '(?!)'})")
        self._memory = {f"  {text}": pack([token_id]) for text, token_id in added.items()}

    def encode(self, texts: Sequence[str]) -> list[bytes]:
        """Packed ids of each text."""
        memory = self._memory
        planned, unknown = [], set()
        for text in texts:
            keys = None if "  " in text else self._likely(text)
            if keys is None or not all(map(memory.__contains__, keys)):
                keys = self._certain(text)
                unknown.update(keys)
            planned.append(keys)
        learned = self._learn(sorted(key for key in unknown if key not in memory))
        encoded = [b"".join(map(memory.__getitem__, keys)) for keys in planned]
        if len(memory) > CAPACITY:  # words met early are the common ones: those stay
            for key in learned:
                del memory[key]
        return encoded

    def _likely(self, text: str) -> list[str]:
        """Keys from splitting at every space: the same as `_certain` if all of them are known words."""
        keys: list[str] = []
        for segment in self._segments.split(text):
            if segment:
                words = segment.split(" ")
                keys.append(f"  {words[0]}")
                keys += words[1:]
        return keys

    def _certain(self, text: str) -> list[str]:
        """Keys from splitting where a cut is certain."""
        keys: list[str] = []
        for segment in self._segments.split(text):
            if segment:
                words = _CUT.split(segment)
                keys.append(f"  {words[0]}")
                keys += words[1:]
        return keys

    def _learn(self, keys: list[str]) -> list[str]:
        texts = [key[2:] if key.startswith("  ") else f" {key}" for key in keys]
        self._memory.update(zip(keys, self._encode_batch(texts), strict=True))
        return keys
