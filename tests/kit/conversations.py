"""Conversations of today, tokenizers for any chat template, and TRL's own preparation of a pair."""

from __future__ import annotations

import functools
import re
from importlib import resources
from typing import Any

from tokenizer_families import chatml

Turn = dict[str, Any]
# Written like the templates of these models where TRL ships none.
MISTRAL = (
    "{%- if messages[0]['role'] == 'system' %}{%- set system = messages[0]['content'] %}{%- set loop_messages = "
    "messages[1:] %}{%- else %}{%- set loop_messages = messages %}{%- endif %}{%- set user = namespace(last=0) %}"
    "{%- for m in loop_messages %}{%- if m['role'] == 'user' %}{%- set user.last = loop.index0 %}{%- endif %}"
    "{%- endfor %}{{- bos_token }}{%- for m in loop_messages %}{%- if m['role'] == 'user' %}"
    "{%- if tools is not none and loop.index0 == user.last %}{{- '[AVAILABLE_TOOLS] ' + (tools | tojson) + "
    "'[/AVAILABLE_TOOLS]' }}{%- endif %}{{- '[INST] ' }}{%- if system is defined and loop.index0 == user.last %}"
    "{{- system + '\n\n' }}{%- endif %}{{- m['content'] + '[/INST]' }}{%- elif m.tool_calls is defined %}"
    "{{- '[TOOL_CALLS] [' }}{%- for call in m.tool_calls %}{{- (call.function | tojson)[:-1] }}"
    "{{- ', \"id\": \"' + call.id + '\"}' }}{%- if not loop.last %}{{- ', ' }}{%- endif %}{%- endfor %}"
    "{{- ']' + eos_token }}{%- elif m['role'] == 'assistant' %}{{- ' ' + m['content'] | trim + eos_token }}"
    "{%- elif m['role'] == 'tool' %}{{- '[TOOL_RESULTS] {\"content\": ' + (m.content | tojson) + ', \"call_id\": \"' + "
    "m.tool_call_id + '\"}[/TOOL_RESULTS]' }}{%- else %}{{- raise_exception('unknown role') }}{%- endif %}"
    "{%- endfor %}"
)
OWN = {"mistral": MISTRAL}
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a place.",
        "parameters": {
            "type": "object",
            "properties": {"place": {"type": "string", "description": "Which."}},
            "required": ["place"],
        },
    },
}


def templates() -> dict[str, str]:
    """Name -> chat template: all that ship with TRL, and ours."""
    shipped = resources.files("trl") / "chat_templates"
    files = sorted((file for file in shipped.iterdir() if file.name.endswith(".jinja")), key=lambda file: file.name)
    return {file.name.removesuffix(".jinja"): file.read_text() for file in files} | OWN


@functools.cache
def tokenizer(template: str) -> Any:
    """A small byte-level BPE whose control tokens are those that a template's text names."""
    from tokenizers import AddedToken, Tokenizer
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer.from_str(chatml().backend_tokenizer.to_str())
    marks = re.findall(
        r"<[|｜][^<>{}'\"]{1,40}?[|｜]>|\[/?[A-Z]{3,}[A-Z_]*\]|<(?:start|end)_of_turn>|<(?:\|[a-z_]+|[a-z_]+\|)>",
        template,
    )
    names = dict.fromkeys(["<bos>", "<eos>", *marks])
    raw.add_special_tokens([AddedToken(name, normalized=False) for name in names])
    made = PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<bos>", eos_token="<eos>", pad_token="<eos>")
    made.chat_template = template
    return made


def call(place: str = "Rome", as_text: bool = False, name: str = "call00001") -> Turn:
    arguments: Any = f'{{"place": "{place}"}}' if as_text else {"place": place}
    return {"id": name, "type": "function", "function": {"name": "weather", "arguments": arguments}}


def called(*calls: Turn, **more: Any) -> Turn:
    return {"role": "assistant", "content": "", "tool_calls": list(calls or [call()]), **more}


def result(content: str = "sunny, 20 degrees", name: str = "call00001") -> Turn:
    return {"role": "tool", "content": content, "tool_call_id": name, "name": "weather"}


def user(content: str) -> Turn:
    return {"role": "user", "content": content}


def says(content: str, **more: Any) -> Turn:
    return {"role": "assistant", "content": content, **more}


def as_read(tokenizer: Any, row: Turn) -> Turn:
    """A row whose texts stand in parts where the template is one of a model that also sees, as TRL gives them."""
    from trl.data_utils import prepare_multimodal_messages

    if "line in message['content']" not in tokenizer.chat_template and "<image>" not in tokenizer.chat_template:
        return row
    return {**row, **{part: prepare_multimodal_messages(row[part]) for part in ("prompt", "chosen", "rejected")}}


def prepared_by_trl(tokenizer: Any, row: Turn) -> tuple[list[int], list[int], list[int]]:
    """(prompt, chosen, rejected) ids as TRL's DPOTrainer makes them of a row with prompt, chosen, rejected, tools."""
    from trl.data_utils import _tokenize, common_prefix_length

    row = as_read(tokenizer, row)
    more = {"tools": row.get("tools")}
    prompt = _tokenize(tokenizer, row["prompt"], add_generation_prompt=True, **more)["input_ids"]
    whole = [_tokenize(tokenizer, row["prompt"] + row[side], **more)["input_ids"] for side in ("chosen", "rejected")]
    length = min(common_prefix_length(prompt, ids) for ids in whole)
    return prompt[:length], whole[0][length:], whole[1][length:]
