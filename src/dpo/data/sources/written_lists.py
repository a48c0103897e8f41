"""Message lists that stand in a row as text: JSON is read, what Python prints of one is refused.

Tables have no better place for them, and rows are often encoded twice. Taken for texts, they would be trained on as
they stand, brackets and all.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from dpo.data.refusal import Reason, RowRefused
from dpo.data.sources.messages import ROLES

COLUMNS = ("prompt", "question", "conversations", "completion", "chosen", "rejected", "response_a", "response_b")
# Only together, so that no answer is misread.
ANSWERS = (("chosen", "rejected"), ("response_a", "response_b"))
READ = "message list read from JSON text"
_BEGINS = re.compile(r"\s*\[?\s*\{\s*(['\"])(?:role|from|content|value)\1\s*:")
_SAYS_WHO = re.compile(r"(['\"])(?:role|from)\1\s*:\s*(['\"])(?:user|human|assistant|gpt|system)\2")
_PYTHON = "a message list as Python prints it; write it with json.dumps"


def with_lists(row: Mapping[str, Any]) -> tuple[Mapping[str, Any], bool]:
    """The row with such texts as lists, and whether there were any; raises RowRefused where one is not JSON."""
    lists: dict[str, Any] = {}
    printed: set[str] = set()
    for name in COLUMNS:
        cell = row.get(name)
        if not isinstance(cell, str) or not _BEGINS.match(cell):
            continue
        try:
            parsed = json.loads(cell)
        except (ValueError, RecursionError):
            if _SAYS_WHO.search(cell):
                printed.add(name)
            continue
        if _is_list(parsed):
            lists[name] = parsed
    for pair in ANSWERS:
        if not all(name in lists.keys() | printed for name in pair):
            printed -= {*pair}
            lists = {name: parsed for name, parsed in lists.items() if name not in pair}
    if printed:
        raise RowRefused(Reason.unparsable, next(name for name in COLUMNS if name in printed), _PYTHON)
    return ({**row, **lists}, True) if lists else (row, False)


def _is_list(parsed: Any) -> bool:
    if isinstance(parsed, list):
        return bool(parsed) and all(isinstance(item, dict) and item.keys() & {"role", "from"} for item in parsed)
    # One message; other objects may have a role too.
    who = parsed.get("role", parsed.get("from")) if isinstance(parsed, dict) else None
    return isinstance(who, str) and who.lower() in ROLES and bool(parsed.keys() & {"content", "value", "tool_calls"})
