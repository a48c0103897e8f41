"""Imported once where test processes are forked from: the page each run ends with is then a matter of milliseconds."""

from __future__ import annotations

from dpo.config.schema import NODES
from dpo.pages import defaults, html, run

html.environment().get_template("run.html")
html._script()
run.default_settings()
for group in NODES:
    defaults._options(group)
