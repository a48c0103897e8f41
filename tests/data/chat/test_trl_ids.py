"""Token ids are those of TRL's own preparation, for its chat templates and others; where not, the reason is told.

On purpose we differ in three things. An answer ends with the first control token behind it (or the tokenizer's end
token where there is none): what a model emits to hand over the turn, not what the template sets further on. Arguments
given as JSON text become an object where the template would quote the text. And what a template leaves out, refuses, or
shows after another prompt than it is asked with is refused by name, where TRL trains on the rest.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
from conversations import TOOL, as_read, call, called, prepared_by_trl, result, says, templates, tokenizer, user
from data_options import dataset

from dpo.data.pair import Pair, TokenPair
from dpo.data.refusal import Reason, Refusal
from dpo.data.sources import local
from dpo.data.tokens import Encoder
from dpo.errors import ConfigError

SYSTEM = {"role": "system", "content": "Be brief."}
GOOD, BAD = [says("Good it is.")], [says("Bad one.")]
ASKED = [user("The weather there?")]
ROWS: dict[str, dict[str, Any]] = {
    "system": {"prompt": [SYSTEM, user("What is it?")], "chosen": GOOD, "rejected": BAD},
    "several turns": {"prompt": [user("What?"), says("This."), user("And that?")], "chosen": GOOD, "rejected": BAD},
    "tools": {"tools": [TOOL], "prompt": ASKED, "chosen": GOOD, "rejected": BAD},
    "a call": {
        "tools": [TOOL], "prompt": [SYSTEM, *ASKED], "chosen": [called()], "rejected": [called(call("Paris"))],
    },
    "arguments as text": {"tools": [TOOL], "prompt": ASKED, "chosen": [called(call(as_text=True))], "rejected": BAD},
    "a trace": {
        "tools": [TOOL], "prompt": ASKED, "chosen": [called(), result(), says("Sunny there.")],
        "rejected": [called(call("Oslo")), result("snow"), says("It snows.")],
    },
    "result before": {"tools": [TOOL], "prompt": [*ASKED, called(), result()], "chosen": GOOD, "rejected": BAD},
    "parallel calls": {
        "tools": [TOOL], "prompt": ASKED, "rejected": BAD, "chosen": [
            called(call(), call("Oslo", name="call00002")), result(), result("snow", "call00002"), says("Sun, snow."),
        ],
    },
    "reasoning": {
        "prompt": [user("What?")], "chosen": [says("Good.", reasoning_content="Let me see.")],
        "rejected": [says("Bad.", reasoning_content="Why not.")],
    },
    "earlier reasoning": {
        "prompt": [user("What?"), says("One.", reasoning_content="Hm."), user("And?")], "chosen": GOOD, "rejected": BAD,
    },
}  # fmt: skip
NAMED = ("llama3_1", "qwen2_5", "qwen3", "mistral", "gemma", "gemma3")


def test_templates_named_by_their_families_are_there() -> None:
    assert set(NAMED) <= set(templates())


@pytest.mark.parametrize("name", [n if n in NAMED else pytest.param(n, marks=pytest.mark.slow) for n in templates()])
def test_ids_are_trls_own(name: str) -> None:
    own = tokenizer(templates()[name])
    if name.startswith("deepseek"):  # its prompts end inside a thought, and it leaves out thoughts that were had
        with pytest.raises(ConfigError, match="is not the start of the whole conversation"):
            Encoder(own, 5000)
        return
    encoder = Encoder(own, 5000)
    for what, row in ROWS.items():
        pair = local.to_pair(row, what, dataset("local", path="x"))
        assert isinstance(pair, Pair)
        got = encoder.encode(pair)
        if isinstance(got, Refusal):
            assert rightly_refused(own, row, got), f"{what}: {got}"
        else:
            check_same(own, got, expected(own, row), what)


def expected(own: Any, row: dict[str, Any]) -> tuple[list[int], list[int], list[int]]:
    """TRL's ids; of arguments as text those of the object where the template would quote the text, or raise."""
    given = copy.deepcopy(row)
    try:
        found = prepared_by_trl(own, given)
        if '\\"place\\"' not in own.decode(found[1]) and "{{" not in own.decode(found[1]):
            return found
    except Exception:  # noqa: BLE001 - whatever a template raises
        found = None
    function = given["chosen"][0]["tool_calls"][0]["function"]
    assert isinstance(function["arguments"], str), f"TRL gives {found}"
    function["arguments"] = {"place": "Rome"}
    return prepared_by_trl(own, given)


def check_same(own: Any, got: TokenPair, want: tuple[list[int], list[int], list[int]], what: str) -> None:
    assert got.prompt_ids == want[0], what
    for ids, theirs in ((got.chosen_ids, want[1]), (got.rejected_ids, want[2])):
        if ids[-1] == own.eos_token_id and theirs == ids[:-1]:
            continue
        assert theirs[: len(ids)] == ids, f"{what}: {own.decode(ids)!r} {own.decode(theirs)!r}"
        left = own.decode(theirs[len(ids) :], skip_special_tokens=True)
        assert left.strip() == "", what


def rightly_refused(own: Any, row: dict[str, Any], refusal: Refusal) -> bool:
    """Whether TRL fails too, leaves out what was said, or trains after another prompt than it would ask with."""
    try:
        prompt, *sides = prepared_by_trl(own, row)
    except Exception:  # noqa: BLE001 - whatever a template raises
        return refusal.reason is Reason.template
    asked = own.apply_chat_template(as_read(own, row)["prompt"], tools=row.get("tools"), add_generation_prompt=True)[
        "input_ids"
    ]
    if refusal.reason is Reason.template and prompt != asked:
        return True
    whole = own.decode(prompt) + "".join(map(own.decode, sides))
    turns = [turn for part in ("prompt", "chosen", "rejected") for turn in row[part]]
    calls = [call["function"] for turn in turns for call in turn.get("tool_calls", ())]
    said = [turn[key] for turn in turns for key in ("content", "reasoning_content") if key in turn]
    said += [place for place in ("Rome", "Oslo") for one in calls if place in str(one["arguments"])]
    said += [TOOL["function"]["description"]] if "tools" in row else []
    return not all(text in whole for text in said)
