"""A conversation with policy and baseline at once: both hear the same user, each remembers its own answers."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dpo.config.export import Chat
from dpo.data.pair import Message
from dpo.data.sources.fields import nothing
from dpo.data.tokens import Encoder
from dpo.errors import ConfigError
from dpo.evaluation.sides import BASELINE, POLICY, Sides
from dpo.generation.sampling import Sampling, stream
from dpo.records.files import write_json
from dpo.records.read import json_file
from dpo.streams import clean

ORDER = (BASELINE, POLICY)
Turn = dict[str, str]


@dataclass
class Answer:
    """What one side has said so far; `how` is "", then ended, cut (at max_new_tokens) or stopped (by the user)."""

    ids: list[int] = field(default_factory=list)
    text: str = ""
    how: str = ""


class Conversation:
    """Turns of both sides. Text that leaves here is safe to print."""

    def __init__(self, sides: Sides, config: Chat, run: str) -> None:
        self.sides, self.config, self.run = sides, config, run
        self.sampling = Sampling(config.temperature, config.top_k, config.max_new_tokens, config.seed)
        self.system = config.system
        self._encoder = Encoder(sides.tokenizer, 2**20, chat_template_kwargs=sides.config.dataset.chat_template_kwargs)
        self.turns: dict[str, list[Turn]] = {side: [] for side in ORDER}

    def reset(self, system: str | None) -> None:
        """Forget all turns and begin with this system message."""
        self.system = system
        self.turns = {side: [] for side in ORDER}

    def prompt(self, side: str, text: str) -> list[int]:
        """Token ids of a side's conversation with `text` as the user's next turn; ConfigError when it is too long.

        What is typed stays text, control tokens too; the template may refuse it, or leave out the system message."""
        system = [Message("system", self.system)] if self.system else []
        said = [Message(turn["role"], turn["content"]) for turn in self.turns[side]]
        ids = self._encoder.encode_prompt([*system, *said, Message("user", text)])
        longest = getattr(self.sides.policy.config, "max_position_embeddings", None)
        if longest is not None and len(ids) + self.sampling.max_new_tokens > longest:
            raise ConfigError(f"the conversation has grown to {len(ids)} of {longest} tokens; /reset begins anew")
        return ids

    def ask(self, text: str, show: Callable[[dict[str, Answer]], None]) -> dict[str, Answer]:
        """Let both sides answer, a token each in turn, with the same random numbers; `show` is called as they grow.

        A KeyboardInterrupt stops the answers; what was said stands. Both turns are remembered.
        """
        answers = {side: Answer() for side in ORDER}
        seed = f"chat:{len(self.turns[POLICY])}"
        prompts = {side: self.prompt(side, text) for side in ORDER}
        tokens: dict[str, Iterator[int]] = {}
        try:
            while any(not answer.how for answer in answers.values()):
                for side, answer in answers.items():
                    if answer.how:
                        continue
                    with self.sides.use(side) as model:
                        if side not in tokens:
                            tokens[side] = stream(model, prompts[side], self.sampling, self.sides.stop_ids, seed)
                        token = next(tokens[side], None)
                    self._take(answer, token)
                show(answers)
        except KeyboardInterrupt:
            for answer in answers.values():
                answer.how = answer.how or "stopped"
        for side, answer in answers.items():
            self.turns[side] += [{"role": "user", "content": text}, {"role": "assistant", "content": answer.text}]
        return answers

    def _take(self, answer: Answer, token: int | None) -> None:
        if token is None:
            answer.how = "ended" if len(answer.ids) < self.sampling.max_new_tokens else "cut"
        else:
            answer.ids.append(token)
        text: Any = self.sides.tokenizer.decode(answer.ids, skip_special_tokens=True)
        # A character of several tokens is not whole yet.
        answer.text = clean(text.rstrip("\ufffd") if not answer.how else text)

    def save(self, path: Path) -> None:
        """Write the conversation as JSON; raises ConfigError when the file is there or cannot be made."""
        if path.exists():
            raise ConfigError(f"{path}: there already; name another file")
        try:
            write_json(
                path,
                {
                    "run": self.run,
                    "saved": time.time(),
                    "system": self.system,
                    "sampling": vars(self.sampling),
                    **{side: self.turns[side] for side in ORDER},
                },
            )
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror}") from None

    def load(self, path: Path) -> int:
        """Go on with what `save` wrote, with these sides; returns how many questions it holds. Raises ConfigError."""
        saved = json_file(path)
        turns = {side: saved.get(side) for side in ORDER}
        for side, found in turns.items():
            roles = [turn.get("role") if isinstance(turn, dict) else None for turn in found or []]
            texts = [turn.get("content") for turn in found or [] if isinstance(turn, dict)]
            whole = isinstance(found, list) and roles == ["user", "assistant"] * (len(roles) // 2)
            if not whole or not all(isinstance(text, str) for text in texts):
                raise ConfigError(f"{path}: not a conversation that /save wrote ({side})")
            for index, turn in enumerate(found or []):
                for key, more in turn.items():
                    if key not in ("role", "content") and not nothing(more):
                        raise ConfigError(f"{path}: {side}[{index}].{key}: a conversation here is texts alone")
        system = saved.get("system")
        self.reset(system if isinstance(system, str) else None)
        self.turns = {side: [dict(turn) for turn in turns[side] or []] for side in ORDER}
        return len(self.turns[POLICY]) // 2
