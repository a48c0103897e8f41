"""Text to token ids such that only the chat template can produce control tokens, never a text that contains one."""

from __future__ import annotations

import collections
import contextlib
import functools
import json
import os
import re
import secrets
from collections.abc import Iterator, Sequence
from typing import Any

from dpo.data.id_bytes import to_bytes, to_ids
from dpo.data.lossless import bare, missing_bytes
from dpo.data.word_memo import WordMemo, cuts_at_spaces
from dpo.errors import ConfigError

# Whether the tokenizers library may use threads of its own.
THREADS = True


class Codec:
    """Encodes rendered chats with a fast tokenizer.

    Control tokens are the tokenizer's special tokens, its named ones (begin, end, padding) and those listed in its
    `chat_control_tokens`. A text that contains one, such as `</s>` typed by a user, is encoded by a twin of the
    tokenizer in which control tokens carry random names: the template's own are renamed in the rendered chat, the
    typed ones stay as they are and are no longer anything special. So the ids are those of ordinary text, in place
    and uncut, also for unigram models, whose vocabulary holds the control tokens as pieces.
    """

    def __init__(self, tokenizer: Any) -> None:
        from tokenizers import Tokenizer

        backend = getattr(tokenizer, "backend_tokenizer", None)
        if not isinstance(backend, Tokenizer):
            raise ConfigError(f"{type(tokenizer).__name__}: not a fast tokenizer (no tokenizer.json); convert it first")
        self._json: str = backend.to_str()
        self._plain = _without_limits(Tokenizer.from_str(self._json))
        added = tokenizer.added_tokens_decoder
        listed = set(getattr(tokenizer, "chat_control_tokens", None) or ())
        named = {str(token) for token in tokenizer.special_tokens_map.values() if isinstance(token, str)}
        self._added = {token.content: token_id for token_id, token in added.items()}
        self.control: dict[str, int] = {
            token.content: token_id
            for token_id, token in added.items()
            if token.special or token.content in listed or token.content in named
        }
        # A control token that is looked for in normalized text can hide from a search in the text as it is.
        self._always_sealed = backend.normalizer is not None and any(
            token.normalized for token in added.values() if token.content in self.control
        )
        longest_first = sorted(self.control, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        # No text can contain these names: they are drawn anew for each object, and no token id depends on them.
        nonce = secrets.token_hex(12)
        self._names = {text: f"c{nonce}n{index}e" for index, text in enumerate(longest_first)}
        self._hidden = {text: f"h{nonce}n{index}e" for index, text in enumerate(longest_first)}
        self._texts = {name: text for text, name in self._hidden.items()}
        self._hidden_pattern = re.compile(f"h{nonce}n[0-9]+e")
        self._own = {name: text for text, name in self._names.items()}
        self._own_pattern = re.compile(f"c{nonce}n[0-9]+e")

    @functools.cached_property
    def _memo(self) -> WordMemo | None:
        if not cuts_at_spaces(json.loads(self._json)):
            return None
        return WordMemo(functools.partial(_encode_batch, self._plain), self._added)

    @functools.cached_property
    def _missing(self) -> bytes | None:
        return missing_bytes(json.loads(self._json))

    def gives_back(self, text: str, packed: bytes) -> bool:
        """Whether ids hold the text they were made of, sealed or not, but for its white space."""
        if self._missing is not None and self._has_bytes(text):
            return True
        text = self._own_pattern.sub(lambda found: self._own[found.group()], text)
        if self._missing is not None:
            # Tokens that were added whole are not said by their bytes.
            return self._has_bytes(re.sub("|".join(map(re.escape, self._added)) or "(?!)", "", text))
        return bare(self._plain.decode(to_ids(packed), skip_special_tokens=False)).startswith(bare(text))

    def _has_bytes(self, text: str) -> bool:
        return not self._missing or len(text.encode().translate(None, self._missing)) == len(text.encode())

    @property
    def definition(self) -> str:
        """The tokenizer as JSON; equal definitions give equal ids."""
        return self._json

    def needs_sealing(self, text: str) -> bool:
        """Whether a text contains the text of a control token."""
        return self._always_sealed or self._pattern.search(text) is not None

    def hide(self, text: str) -> str:
        """Replace typed control tokens by names, so that rendering a template leaves them apart from its own."""
        return self._pattern.sub(lambda found: self._hidden[found.group()], text)

    def seal(self, rendered: str) -> str:
        """The template's control tokens by their secret names, typed ones by their text again."""
        renamed = self._pattern.sub(lambda found: self._names[found.group()], rendered)
        return self._hidden_pattern.sub(lambda found: self._texts[found.group()], renamed)

    def last_control(self, rendered: str) -> tuple[int, int] | None:
        """Where the last control token of a rendered chat starts and ends, or None."""
        last = collections.deque(self._pattern.finditer(rendered), maxlen=1)
        return last[0].span() if last else None

    def end_of_first_control(self, text: str) -> int | None:
        """Where the first control token of a text ends, or None."""
        found = self._pattern.search(text)
        return None if found is None else found.end()

    def encode(self, text: str, sealed: bool = False) -> list[int]:
        """Token ids of one text, without any token the text does not hold."""
        return to_ids(self.encode_batch([text], sealed)[0])

    def encode_batch(self, texts: Sequence[str], sealed: bool = False) -> list[bytes]:
        """Packed token ids of each text; equal texts are encoded once, and new words on all cores."""
        unique = list(dict.fromkeys(texts))
        if sealed or self._memo is None:
            encoded = _encode_batch(self._sealed if sealed else self._plain, unique)
        else:
            encoded = self._memo.encode(unique)
        if len(unique) == len(texts):
            return encoded
        by_text = dict(zip(unique, encoded, strict=True))
        return [by_text[text] for text in texts]

    def offsets(self, text: str, sealed: bool = False) -> list[tuple[int, int]]:
        """(first, one past last) character of each token of one text."""
        return (self._sealed if sealed else self._plain).encode(text, add_special_tokens=False).offsets

    def visible(self, ids: Sequence[int]) -> str:
        """Ids as text, each control token between \u27e6 and \u27e7."""
        names = {token_id: text for text, token_id in self.control.items()}
        parts: list[str] = []
        run: list[int] = []
        for token_id in (*ids, None):
            if token_id is None or token_id in names:
                parts.append(self._plain.decode(run, skip_special_tokens=False) if run else "")
                run = []
                parts.append("" if token_id is None else f"\u27e6{names[token_id]}\u27e7")
            else:
                run.append(token_id)
        return "".join(parts)

    @functools.cached_property
    def _sealed(self) -> Any:
        from tokenizers import Tokenizer

        definition = json.loads(self._json)
        definition["post_processor"] = None
        for token in definition["added_tokens"]:
            token["content"] = self._names.get(token["content"], token["content"])
        model = definition["model"]
        vocabulary = model["vocab"]
        if isinstance(vocabulary, dict):
            model["vocab"] = {self._names.get(piece, piece): index for piece, index in vocabulary.items()}
        else:
            model["vocab"] = [[self._names.get(piece, piece), score] for piece, score in vocabulary]
        if "merges" in model:
            model["merges"] = [merge for merge in model["merges"] if not self._makes_control(merge)]
        if isinstance(model.get("unk_token"), str):
            model["unk_token"] = self._names.get(model["unk_token"], model["unk_token"])
        return _without_limits(Tokenizer.from_str(json.dumps(definition)))

    def _makes_control(self, merge: Any) -> bool:
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        return left in self._names or right in self._names or left + right in self._names


def _encode_batch(tokenizer: Any, texts: list[str]) -> list[bytes]:
    with _all_cores():
        return [to_bytes(encoding.ids) for encoding in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]


@contextlib.contextmanager
def _all_cores() -> Iterator[None]:
    """The library's threads, also where they are switched off for the sake of processes that fork later."""
    before = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = "true" if THREADS else "false"
    try:
        yield
    finally:
        os.environ["TOKENIZERS_PARALLELISM"] = "false" if before is None else before


def _without_limits(tokenizer: Any) -> Any:
    """Padding and truncation may have been switched on by whoever had the tokenizer before."""
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer
