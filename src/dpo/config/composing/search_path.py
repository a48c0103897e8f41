"""A user's own ./conf beside where the command runs: its options join ours."""

from __future__ import annotations

from pathlib import Path

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin

from dpo.config.folder import conf_folder


class UserConf(SearchPathPlugin):
    """Appends ./conf of the current folder to Hydra's search path when it is not the project's own."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Called by Hydra once per composition."""
        mine = Path.cwd() / "conf"
        if mine.is_dir() and mine.resolve() != conf_folder().resolve():
            search_path.append("user", f"file://{mine}")
