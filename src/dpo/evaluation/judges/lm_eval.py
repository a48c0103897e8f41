"""`judge=[lm_eval]`: tasks of lm-eval on the baseline and on the policy, so what alignment cost in capability."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import logging
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from dpo.config.judges import LmEvalJudge
from dpo.config.nearest import nearest
from dpo.errors import ConfigError, DataError, NetworkError, Refused
from dpo.evaluation.judges.interface import Benchmark, Measured
from dpo.records.hub import ask, endpoint
from dpo.records.progress import StageProgress

# Metrics that are shares of what was asked; others are shown as they are.
SHARES = ("acc", "acc_norm", "acc_mutual_info", "acc_bytes", "exact_match", "em", "f1", "pass@1")


class CapabilityBenchmark(Benchmark):
    """The figures lm-eval reports for its tasks, with its standard errors."""

    name = "lm_eval"
    label = "lm-eval tasks"

    def __init__(self, settings: LmEvalJudge, manager: Any, tasks: Mapping[str, Any], online: bool) -> None:
        self.settings = settings
        self.manager = manager
        self.online = online
        version = importlib.metadata.version("lm-eval")
        asked = f"{settings.few_shots} {settings.limit} {settings.chat_template}"
        self.fingerprint = f"2 lm-eval {version} {settings.tasks} {asked} {_content(tasks, settings.limit)}"
        shots = "each task's own" if settings.few_shots is None else str(settings.few_shots)
        self.definition = (
            f"lm-eval {version}, {', '.join(settings.tasks)}: {shots} shots, "
            f"{'all questions' if settings.limit is None else f'the first {settings.limit} questions of a task'}, "
            f"{'with' if settings.chat_template else 'without'} the chat template. Both sides answer the same "
            "questions: intervals are over questions, paired in the difference; where a figure is no mean over "
            "questions, normal from its standard errors, with the sides as independent."
        )

    def measure(self, model: Any, tokenizer: Any, side: str) -> list[Measured]:
        """See Benchmark."""
        from lm_eval.evaluator import simple_evaluate
        from lm_eval.models.huggingface import HFLM

        settings = self.settings
        wrapped = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=settings.batch_size)
        with _hub(self.online), _own_progress(f"{self.name} of the {side}"):
            try:
                found = simple_evaluate(
                    wrapped,
                    tasks=list(settings.tasks),
                    task_manager=self.manager,
                    num_fewshot=settings.few_shots,
                    limit=settings.limit,
                    apply_chat_template=settings.chat_template,
                    log_samples=True,
                )
            except ValueError as error:
                if "unsafe" in str(error).lower():
                    raise Refused(f"judge.lm_eval.tasks: {str(error).splitlines()[0]:.200}") from None
                raise
        return _figures(found)


def _figures(found: Mapping[str, Any]) -> list[Measured]:
    """Groups by their aggregate where they have one, else their tasks."""
    groups = found["group_subtasks"]
    hidden = {task for group in found.get("groups", {}) for task in _below(group, groups)}
    made = []
    for task, results in found["results"].items():
        if task in hidden:
            continue
        leaves = [t for t in [task, *_below(task, groups)] if t in found["n-samples"]]
        n = sum(found["n-samples"][t]["effective"] for t in leaves)
        for key, value in results.items():
            metric, _, kind = key.partition(",")
            if not kind or metric.endswith("_stderr") or not isinstance(value, (int, float)):
                continue
            error = results.get(f"{metric}_stderr,{kind}")
            higher = found["higher_is_better"].get(task, {}).get(metric)
            label = f"{task} {metric}" + (f" ({kind})" if kind != "none" else "")
            label += " (lower is better)" if higher is False else ""
            known = float(error) if isinstance(error, (int, float)) else None
            values = _values(found["samples"], leaves, metric, kind, float(value))
            made.append(Measured(f"{task}:{key}", label, float(value), known, n, metric in SHARES, higher, values))
    return made


def _values(
    samples: Mapping[str, Any], tasks: Sequence[str], metric: str, kind: str, value: float
) -> list[float] | None:
    """What each question counted, where `value` is their mean."""
    rows = [row for task in tasks for row in samples[task] if row["filter"] == kind]
    values = [float(row[metric]) for row in rows if isinstance(row.get(metric), (int, float))]
    if not values or len(values) < len(rows) or not math.isclose(math.fsum(values) / len(values), value, abs_tol=1e-9):
        return None
    return values


class _Bar:
    """Stands in for tqdm's bar: the progress of all other stages."""

    what = ""

    def __init__(self, iterable: Any = None, total: int | None = None, **_: Any) -> None:
        self._iterable = iterable
        count = len(iterable) if total is None else total
        self._progress = StageProgress(self.what, count).__enter__()

    def __iter__(self) -> Iterator[Any]:
        for value in self._iterable:
            yield value
            self._progress.advance(1)
        self.close()

    def update(self, count: int = 1) -> None:
        self._progress.advance(count)

    def close(self) -> None:
        self._progress.__exit__(None, None, None)


@contextlib.contextmanager
def _own_progress(what: str) -> Iterator[None]:
    """lm-eval's bars say nothing of sides and cannot be turned off; nor can git's word that there is no repository."""
    from lm_eval import evaluator
    from lm_eval.api import model, task
    from lm_eval.models import huggingface

    bar = type("Bar", (_Bar,), {"what": what})
    replaced: list[tuple[Any, str, Any]] = [(module, "tqdm", bar) for module in (model, task, huggingface)]
    replaced.append((evaluator, "get_git_commit_hash", lambda: None))
    before = [getattr(module, name) for module, name, _ in replaced]
    for module, name, ours in replaced:
        setattr(module, name, ours)
    try:
        yield
    finally:
        for (module, name, _), theirs in zip(replaced, before, strict=True):
            setattr(module, name, theirs)


def _below(group: str, groups: Mapping[str, list[str]]) -> list[str]:
    return [name for child in groups.get(group, []) for name in (child, *_below(child, groups))]


def _content(tasks: Mapping[str, Any], limit: int | None) -> str:
    """A digest of what is asked: each task's settings and questions."""
    state = hashlib.sha256()
    for name, task in sorted(tasks.items()):
        config = {k: v for k, v in task.dump_config().items() if k != "metadata"}
        state.update(f"{name} {config}".encode("utf-8", "surrogatepass"))
        for number, doc in enumerate(task.eval_docs):
            if limit is not None and number >= limit:
                break
            state.update(str(doc).encode("utf-8", "surrogatepass"))
    return state.hexdigest()[:16]


@contextlib.contextmanager
def _hub(online: bool) -> Iterator[None]:
    """With the hub or, within the block, without it: what is not cached then fails at once instead of after a minute
    of retries."""
    import datasets
    from huggingface_hub import constants

    before = (datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE)
    if not online:
        datasets.config.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE = before


def build(settings: LmEvalJudge) -> CapabilityBenchmark:
    """Raises ConfigError for a task that is not known, NetworkError for one whose data is on a hub out of reach.

    The tasks' data is loaded here, so that what is missing is known before answers are drawn.
    """
    if find_spec("lm_eval") is None:
        raise ConfigError("judge=[lm_eval]: needs lm-eval: pip install 'dpo-train[lm_eval]'")
    if not settings.tasks:
        raise ConfigError("judge.lm_eval.tasks: name at least one, such as [arc_easy]")
    include = None if settings.include is None else Path(settings.include).expanduser()
    if include is not None and not include.is_dir():
        raise ConfigError(f"judge.lm_eval.include={settings.include}: no such folder")
    import datasets
    from lm_eval.tasks import TaskManager

    datasets.disable_progress_bars()
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    manager = TaskManager(include_path=None if include is None else str(include), include_defaults=include is None)
    # Reading the index of lm-eval's own thousands of tasks takes seconds.
    if include is not None and not set(settings.tasks) <= set(manager.all_subtasks):
        manager = TaskManager(include_path=str(include))
    for name in settings.tasks:
        if name not in manager.task_index:
            raise ConfigError(f"judge.lm_eval.tasks: no task {name}{nearest(name, manager.all_tasks)}")
    # First without the hub: local data and what is cached need none.
    tasks = _load(manager, settings.tasks, False)
    if tasks is not None:
        return CapabilityBenchmark(settings, manager, tasks, False)
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON"):
        reached: int | str = "HF_HUB_OFFLINE is set"
    else:
        reached = ask("/api/models?limit=1", None)
    named = f"judge.lm_eval.tasks={list(settings.tasks)}: the data of a task is on the hub, and "
    if not isinstance(reached, int) or reached >= 500:
        raise NetworkError(f"{named}{endpoint()} does not answer ({reached}); judge.lm_eval.include adds local tasks")
    tasks = _load(manager, settings.tasks, True)
    if tasks is None:
        raise NetworkError(f"{named}{endpoint()} does not give it (gone, gated, or a broken connection)")
    return CapabilityBenchmark(settings, manager, tasks, True)


def _load(manager: Any, names: list[str], online: bool) -> Mapping[str, Any] | None:
    """Each task by name with its data; None where that is on a hub out of reach."""
    from datasets.exceptions import DatasetNotFoundError

    with _hub(online):
        try:
            found: Mapping[str, Any] = manager.load(list(names))["tasks"]
        except (ConnectionError, DatasetNotFoundError):
            return None
        except FileNotFoundError as error:
            raise DataError(f"judge.lm_eval.tasks={list(names)}: {str(error).splitlines()[0]:.200}") from None
    return found
