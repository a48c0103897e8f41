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

from dpo.data.id_bytes import WIDTH, to_bytes, to_ids

# Pre-tokenizer expressions for which the above was checked: Llama 3, and Qwen 2 to 3 (digits one by one).
SPLITS = {
    rf"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    for digits in (r"\p{N}{1,3}", r"\p{N}")
}
# White space, in this and other versions of Unicode.
_SPACE = r"\s\u180e\u200b\ufeff"
_CUT = re.compile(f" (?=[^{_SPACE}])")
_NOT_SPACE = re.compile(f"[^{_SPACE}]")
# Stands in keys for a space that another follows, so that splitting at every other space is nearly always right.
_BLANK = "\x7f"
# Words kept, at some 200 bytes each.
CAPACITY = 500_000
# Words encoded in one call: a call costs more than a word.
ROW = 128

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

    Keys of the memory: a word behind a space as it is, and what begins a segment with two spaces in front. No word
    behind a certain cut begins with white space, so the two cannot be mixed up. Spaces inside a key are _BLANK.
    """

    def __init__(self, encode_batch: EncodeBatch, added: dict[str, int]) -> None:
        self._encode_batch = encode_batch
        longest_first = sorted(added, key=len, reverse=True)
        self._segments = re.compile(f"({'|'.join(map(re.escape, longest_first)) or '(?!)'})")
        self._memory = {f"  {text}": to_bytes([token_id]) for text, token_id in added.items()}
        self._separator, self._separator_id = next(iter(added.items()), ("", -1))
        self._row = ROW if added else 1

    def encode(self, texts: Sequence[str]) -> list[bytes]:
        """Packed ids of each text."""
        memory = self._memory
        marked = [text for text in texts if _BLANK in text]
        whole = dict(zip(marked, self._encode_batch(marked), strict=True)) if marked else {}
        encoded: list[bytes | list[str]] = []
        unknown: set[str] = set()
        for text in texts:
            if text in whole:
                encoded.append(whole[text])
                continue
            keys = self._split(text)
            words = [*map(memory.get, keys)]
            if None not in words:
                encoded.append(b"".join(words))  # type: ignore[arg-type]
                continue
            new = [key for key, word in zip(keys, words, strict=True) if word is None]
            if not all(key.startswith("  ") or _NOT_SPACE.match(key) for key in new):
                keys = self._split_with_care(text)
                new = [key for key in keys if key not in memory]
            unknown.update(new)
            encoded.append(keys)
        learned = self._learn(sorted(unknown))
        packed = [one if isinstance(one, bytes) else b"".join(map(memory.__getitem__, one)) for one in encoded]
        if len(memory) > CAPACITY:  # words met early are the common ones: those stay
            for key in learned:
                del memory[key]
        return packed

    def _split(self, text: str) -> list[str]:
        """Keys from splitting at the last space of every run: right if none that is new begins with white space."""
        while "  " in text:
            text = text.replace("  ", f"{_BLANK} ").replace(f" {_BLANK}", _BLANK * 2)
        keys: list[str] = []
        for segment in self._segments.split(text):
            if segment:
                first, *words = segment.split(" ")
                keys.append(f"  {first}")
                keys += words
        return keys

    def _split_with_care(self, text: str) -> list[str]:
        """Keys from splitting where a cut is certain: not at a space that other white space follows."""
        keys: list[str] = []
        for segment in self._segments.split(text):
            if segment:
                first, *words = (word.replace(" ", _BLANK) for word in _CUT.split(segment))
                keys.append(f"  {first}")
                keys += words
        return keys

    def _learn(self, keys: list[str]) -> list[str]:
        """Encode words in rows, an added token between any two, for it cuts, and a call costs more than a word."""
        rows = [keys[start : start + self._row] for start in range(0, len(keys), self._row)]
        texts = [self._separator.join(map(_text, row)) for row in rows]
        for row, packed in zip(rows, self._encode_batch(texts), strict=True):
            ids = to_ids(packed)
            if ids.count(self._separator_id) != len(row) - 1:  # a word's end and the separator gave another token
                self._memory.update(zip(row, self._encode_batch(list(map(_text, row))), strict=True))
                continue
            start = 0
            for key in row:
                end = ids.index(self._separator_id, start) if key != row[-1] else len(ids)
                self._memory[key] = packed[start * WIDTH : end * WIDTH]
                start = end + 1
        return keys


def _text(key: str) -> str:
    key = key.replace(_BLANK, " ")
    return key[2:] if key.startswith("  ") else f" {key}"
