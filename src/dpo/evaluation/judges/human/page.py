"""The rating sheet as a page: self-contained, keeps progress in the browser, exports what was rated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dpo.pages.html import environment, file_text, source_hash
from dpo.records.files import write_text


def write_rating_page(path: Path, sheet: str, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write the page of `rows` (each with row, messages, left, right) to `path`.

    The texts are data in the page's markup, escaped; the one script reads only what the rater enters.
    """
    from markupsafe import Markup

    script, style = file_text("rating.js"), file_text("rating.css")
    policy = (
        f"default-src 'none'; script-src '{source_hash(script)}'; style-src '{source_hash(style)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    page = environment().get_template("rating.html")
    # Both are this project's own files; nothing of a row is in them.
    text = page.render(policy=policy, sheet=sheet, rows=rows, script=Markup(script), style=Markup(style))  # noqa: S704
    write_text(path, text)
    return path
