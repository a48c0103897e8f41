"""Self-contained pages: one script and one style, each allowed by its hash; nothing else may load or run.

Model output is hostile. Templates escape everything; data for plots travels as JSON in which `<` cannot occur; the
policy forbids every request and every other script, so that even an escaping mistake would not execute.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from dpo.pages.tables import number
from dpo.pages.words import verdict_word
from dpo.records.files import write_text
from dpo.streams import clean

CONTENTS = "<!-- contents -->"


def write_page(path: Path, template: str, plots: Mapping[str, Any], **values: Any) -> Path:
    """Render `template` (a file beside this module) to `path`; `plots` maps element ids to Plotly figures."""
    write_text(path, render(template, plots, **values))
    return path


def render(template: str, plots: Mapping[str, Any], **values: Any) -> str:
    """The page as text; about 5 MB, nearly all of it the plots' library."""
    from markupsafe import Markup

    script, style = _script(), file_text("page.css")
    page = environment().get_template(template)
    text: str = page.render(
        policy=content_policy(script, style),
        # Ours and the library's own text; no value of a run is in them.
        script=Markup(script),  # noqa: S704
        style=Markup(style),  # noqa: S704
        plots=Markup(embedded_json(plots)),  # noqa: S704
        blocked=_blocked_styles(script),
        contents=Markup(CONTENTS),  # noqa: S704
        **values,
    )
    return with_contents(text)


def with_contents(text: str) -> str:
    """The page with its sections numbered and listed where the template has `contents`. A template's `<h2>` is the only
    one there is: whatever a run holds is escaped."""
    titles: list[str] = []

    def anchored(found: re.Match[str]) -> str:
        titles.append(found[1])
        return f'<h2 id="section-{len(titles)}">{found[1]}</h2>'

    text = re.sub(r"<h2>([^<]*)</h2>", anchored, text)
    links = "".join(f'<a href="#section-{n}">{title}</a>' for n, title in enumerate(titles, 1))
    return text.replace(CONTENTS, f'<nav class="contents" aria-label="contents">{links}</nav>')


@cache
def environment() -> Any:
    """Jinja with the templates beside this module, everything escaped, and nothing undefined."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    made = Environment(
        loader=FileSystemLoader(Path(str(resources.files("dpo.pages")))),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"clean": clean, "number": number, "whole": whole, "verdict": verdict_word}
    return made


def whole(cell: str) -> str:
    """A table's cell whose intervals stay in one piece where a narrow screen breaks the line."""
    return re.sub(r"\[[^\[\]]{1,30}\]", lambda found: found[0].replace(" ", "\xa0"), cell)


def content_policy(script: str, style: str) -> str:
    """The Content-Security-Policy of a page. Style attributes are the plots' own; they can load nothing."""
    return (
        f"default-src 'none'; script-src '{source_hash(script)}'; "
        f"style-src-elem '{source_hash(style)}' '{source_hash('')}'; "
        "style-src-attr 'unsafe-inline'; img-src data: blob:; base-uri 'none'; form-action 'none'"
    )


def embedded_json(data: Any) -> str:
    """JSON that cannot end the script element it stands in, nor begin a comment or a line of code."""
    text = json.dumps(_plain(data), ensure_ascii=False, allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _plain(node: Any) -> Any:
    """Finite numbers only (NaN becomes a gap), and text without control characters or the plots' pseudo-HTML."""
    if isinstance(node, Mapping):
        return {str(key): _plain(value) for key, value in node.items()}
    if isinstance(node, (list, tuple)):
        return [_plain(value) for value in node]
    if isinstance(node, float) and (node != node or node in (float("inf"), float("-inf"))):
        return None
    if isinstance(node, str):
        return clean(node).replace("<", "‹").replace(">", "›")
    return node


@cache
def _script() -> str:
    from plotly.offline import get_plotlyjs

    return f"{get_plotlyjs()}\n{file_text('page.js')}"


def _blocked_styles(script: str) -> list[str]:
    """Ids of styles the library would add for its map traces. The policy refuses them; an element of that id, which
    the library looks for first, spares the reader's console the complaint."""
    return re.findall(r'getElementById\("([0-9a-f]{64})"\)', script)


@cache
def file_text(name: str) -> str:
    """A file beside this module."""
    return resources.files("dpo.pages").joinpath(name).read_text(encoding="utf-8")


def source_hash(text: str) -> str:
    """What a Content-Security-Policy allows an inline script or style by."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
