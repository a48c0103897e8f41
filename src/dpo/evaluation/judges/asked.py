"""What an evaluation asks where its command says nothing: the judges and the limit that the run's dataset names."""

from __future__ import annotations

from dataclasses import replace

from dpo.config.datasets import Dataset
from dpo.config.evaluation import Evaluate, Evaluation, register
from dpo.config.judges import Judges
from dpo.pages.defaults import composed


def judges_asked(named: Judges, instead: list[str]) -> Judges:
    """The judges that were named, or where none was those called `instead`, with the settings of conf/judge."""
    if named != Judges():
        return named
    register()
    return composed("evaluate", Evaluate, ["run=x", f"judge=[{','.join(instead)}]"]).judge


def settings_asked(settings: Evaluation, dataset: Dataset) -> Evaluation:
    """The settings with the dataset's limit of an answer where they have none."""
    if settings.max_new_tokens is not None:
        return settings
    return replace(settings, max_new_tokens=dataset.max_new_tokens)
