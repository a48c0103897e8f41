"""Every key of a run is alive: changing it changes what the code it is for is given.

The keys of the dpo and lora groups stand in tests/training/test_arguments.py; here are the others. A key whose effect
needs rows, processes or a server is shown alive by the test named beside it.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dpo.config.schema import NODES, Config

TESTS = Path(__file__).parents[1]
HEX = "0123456789abcdef" * 2 + "01234567"

# override (with what it needs) -> (who is asked, what it is given then)
MODEL = {
    "model.path=other/model": ("resolve", "other/model"),
    "model.revision=v9": ("resolve", "v9"),
    f"model.trust_remote_code=true model.revision={HEX}": ("resolve", True),
    "model.chat_template=chatml": ("load_tokenizer", "chatml"),
    "model.adapter=some/adapter": ("resolve_adapter", "some/adapter"),
    "model.adapter_revision=v2 model.adapter=some/adapter": ("resolve_adapter", "v2"),
    "model.widen_adapter=true model.adapter=some/adapter": ("check_agrees", True),
}
HARDWARE = {
    "hardware.device=cpu": ("choose_compute", "cpu"),
    "hardware.precision=fp32": ("choose_compute", "fp32"),
    "hardware.attention=eager": ("load_base", "eager"),
    "hardware.memory_gb=3": ("usable", 3.0),
    "hardware.token_budget=77": ("plan", 77),
    "hardware.activation_checkpointing=off": ("plan", False),
    "hardware.engine=plain": ("plan", "plain"),
    "hardware.hourly_rate=3": ("Ledger", 3.0),
}
WANDB = {
    "tracking.project=mine": ("project", "mine"),
    "tracking.entity=team": ("entity", "team"),
    "tracking.group=these": ("group", "these"),
    "tracking.mode=offline": ("where", "wandb, offline: asked for"),
    "tracking.adapter=true": ("kept", True),
    "tracking=none": ("where", "run directory only"),
}
ELSEWHERE = {
    "hardware.parallel": "distributed/test_launch.py::test_what_is_spread_follows_the_stage",
    "hardware.processes": "distributed/test_launch.py::test_what_cannot_be_is_one_line",
    "dataset.source": "data/test_load.py::test_schemas_match_their_options",
    "dataset.path": "data/test_inputs.py::test_real_rows_train",
    "dataset.limit": "data/test_load.py::test_a_limit_takes_the_first_pairs_that_pass",
    "dataset.max_length": "data/test_prepare.py::test_the_report_adds_up",
    "dataset.min_prompt_tokens": "data/test_tokens.py::test_the_user_turn_keeps_its_floor",
    "dataset.keep": "data/test_tokens.py::test_then_the_last_user_turn_is_shortened_at_the_end_that_may_go",
    "dataset.on_bad": "data/test_verb.py::test_bad_rows_stop_it_with_their_names",
    "dataset.soft_labels": "data/test_sources.py::test_shp_ratio_is_a_threshold_and_a_soft_label",
    "dataset.count_tool_tokens": "data/test_messages.py::test_what_a_tool_wrote_counts_where_that_is_asked_for",
    "dataset.dev_fraction": "data/test_load.py::test_posts_with_one_text_stay_on_one_side",
    "dataset.test_fraction": "data/test_load.py::test_posts_with_one_text_stay_on_one_side",
    "dataset.judges": "evaluation/test_asked.py::test_what_is_named_wins",
    "dataset.max_new_tokens": "evaluation/test_asked.py::test_what_is_named_wins",
    "dataset.chat_template_kwargs": "data/test_tokens.py::test_template_arguments_reach_the_template",
    "dataset.hub": "data/test_hub.py::test_what_the_hub_refuses_takes_lines_not_a_traceback",
    "dataset.revision": "data/test_hub.py::test_what_the_hub_refuses_takes_lines_not_a_traceback",
    "dataset.subset": "data/test_real_rows.py::test_a_folder_gives_one_subset_or_all",
    "dataset.subreddit": "data/test_load.py::test_repositories_are_read_in_their_own_layout",
    "dataset.min_ratio": "data/test_sources.py::test_shp_ratio_is_a_threshold_and_a_soft_label",
    "dataset.pairs_per_post": "data/test_real_rows.py::test_shp_rows",
    "dataset.dev_path": "data/test_load.py::test_held_out_files_of_their_own",
    "dataset.test_path": "data/test_load.py::test_held_out_files_of_their_own",
    "dataset.columns": "data/test_sources.py::test_local_columns_can_be_renamed",
    "dataset.label_a": "data/test_sources.py::test_local_labels_are_never_guessed",
    "dataset.label_b": "data/test_sources.py::test_local_labels_are_never_guessed",
    "dataset.id": "data/test_hub.py::test_any_dataset_is_read_by_its_card_and_its_columns",
    "dataset.config": "data/test_hub.py::test_any_dataset_is_read_by_its_card_and_its_columns",
    "dataset.split": "data/test_hub.py::test_any_dataset_is_read_by_its_card_and_its_columns",
    "dataset.test_split": "data/test_hub.py::test_any_dataset_is_read_by_its_card_and_its_columns",
    "dataset.dev_split": "data/test_hub.py::test_any_dataset_is_read_by_its_card_and_its_columns",
    "dataset.parts": "data/test_mixture.py::test_a_runs_config_says_all_of_every_part",
    "dataset.weights": "data/test_mixture.py::test_shares_come_from_a_hash_and_what_is_used_adds_up",
    "dataset.overrides": "data/test_mixture.py::test_a_runs_config_says_all_of_every_part",
    "sweep.evaluate": "sweeps/test_sweep.py::test_other_evaluation_settings_are_another_evaluation",
    "sweep.evaluation": "sweeps/test_sweep.py::test_other_evaluation_settings_are_another_evaluation",
    "sweep.judge": "sweeps/test_sweep.py::test_the_evaluation_is_checked_before_the_first_job",
    "name": "training/test_arguments.py::test_the_two_cadences_of_looking_and_keeping_are_alive",
    "resume": "training/test_runs.py::test_what_is_continued_is_the_users_word",
    "resume_anyway": "training/test_runs.py::test_what_is_continued_is_the_users_word",
}


class Stop(Exception):
    """Far enough."""


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """asked("model.path=x") -> {function: everything it is given} on the way from a config to its loaded model."""
    from dpo.distributed.ranks import ALONE
    from dpo.engine import choice as engine
    from dpo.training import base as bases
    from dpo.training import build
    from dpo.training import job as jobs

    given: dict[str, list[Any]] = {}

    def fake(module: Any, name: str, result: Any = None, stop: bool = False) -> None:
        def called(*args: Any, **kwargs: Any) -> Any:
            given.setdefault(name, []).extend([*args, *kwargs.values()])
            if stop:
                raise Stop
            return result

        monkeypatch.setattr(module, name, called)

    import torch

    from dpo.modeling.adapter import Adapter
    from dpo.modeling.device import Compute

    weights = SimpleNamespace(folder=tmp_path, remote_code=False, fingerprint="f", revision=None)
    fake(bases, "choose_compute", Compute("cpu", torch.float32))
    fake(bases, "resolve", weights)
    fake(bases, "load_tokenizer", SimpleNamespace(pad_token_id=0))
    fake(bases, "tokenizer_fingerprint", "t")
    fake(bases, "model_config")
    fake(bases, "positions", 10**6)
    fake(bases, "steady")
    fake(bases, "check_stored")
    fake(bases, "resolve_adapter", Adapter(tmp_path, "some/adapter", None, "f", {}))
    fake(bases, "check_agrees")
    fake(build, "load_base", stop=True)
    fake(build, "objective", SimpleNamespace(losses=()))
    fake(engine, "install")
    fake(engine, "most_at_once", 1)
    fake(engine, "held_bytes", 0)
    fake(engine, "usable", 10**9)
    fake(engine, "plan", stop=True)
    fake(jobs, "Ledger", stop=True)
    model = torch.nn.Module()

    def ask(*overrides: str) -> dict[str, list[Any]]:
        config = compose_here(*overrides)
        given.clear()
        ledger = SimpleNamespace(phase=lambda name: contextlib.nullcontext())
        run = SimpleNamespace(
            folder=tmp_path, record={"fingerprints": {}, "created": 0.0}, update=lambda **values: None
        )
        interrupts = SimpleNamespace(check=lambda: None)
        job: Any = SimpleNamespace(config=config, ledger=ledger, run=run, ranks=ALONE, interrupts=interrupts)
        job.say = lambda line: None
        base = bases.find_base(job)
        data: Any = SimpleNamespace(train=[], dev=[])
        for step in (
            lambda: build.build_trainer(job, base, data, data.train, None),
            lambda: build.choose(job, base, model, data.train, None),
            lambda: open_it(config),
        ):
            with contextlib.suppress(Stop):
                step()
        return given

    def open_it(config: Config) -> None:
        with jobs.open_job(config):
            pass

    monkeypatch.setenv("DPO_OUTPUTS", str(tmp_path / "outputs"))
    compose_here = _compose
    return ask


def _compose(*overrides: str) -> Config:
    from dpo.pages.defaults import composed

    return composed("config", Config, list(overrides))


@pytest.mark.parametrize("override", [*MODEL, *HARDWARE])
def test_a_leaf_reaches_whom_it_is_for(asked, override):
    who, value = {**MODEL, **HARDWARE}[override]
    changed, *needed = override.split()
    before = [word for word in needed if not word.startswith("model.revision")]
    assert value not in [plain(v) for v in asked(*before).get(who, [])]
    assert value in [plain(v) for v in asked(changed, *needed)[who]]


def plain(value: Any) -> Any:
    return getattr(value, "value", value)


@pytest.mark.parametrize("override", WANDB)
def test_a_leaf_reaches_the_tracker(monkeypatch, tmp_path, override):
    import wandb

    from dpo.records.tracking import build_tracker

    monkeypatch.setenv("NETRC", "/dev/null")
    given: dict[str, Any] = {}

    def start(*overrides: str) -> dict[str, Any]:
        given.clear()
        run = SimpleNamespace(name="x", id="y", log_artifact=lambda artifact: given.update(kept=True))
        monkeypatch.setattr(wandb, "init", lambda **kwargs: given.update(kwargs) or run)
        tracker = build_tracker(_compose(*overrides).tracking, tmp_path, {}, {})
        tracker.keep(tmp_path)
        return {"kept": False, **given, "where": tracker.where.partition(" (upload")[0]}

    name, value = WANDB[override]
    assert start()[name] != value
    assert start(override)[name] == value


def test_every_leaf_of_these_groups_is_listed_here():
    shown = {words.split()[0].split("=")[0] for words in (*MODEL, *HARDWARE, *WANDB)} | set(ELSEWHERE)
    shown |= {"tracking.backend", "seed"}  # tracking=none above; seed with the dpo group's
    for group in ("model", "dataset", "hardware", "tracking"):
        for node in NODES[group].values():
            assert {f"{group}.{field.name}" for field in dataclasses.fields(node)} <= shown
    from dpo.config.sweeps import Sweep

    assert {f"sweep.{field.name}" for field in dataclasses.fields(Sweep)} <= shown
    assert {field.name for field in dataclasses.fields(Config)} - {*NODES, "sweep"} <= shown


@pytest.mark.parametrize("leaf", ELSEWHERE)
def test_the_test_named_for_a_leaf_is_there_and_sets_it(leaf):
    file, name = ELSEWHERE[leaf].split("::")
    source = (TESTS / file).read_text()
    (found,) = [node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef) and node.name == name]
    first = min([found.lineno, *(decorator.lineno for decorator in found.decorator_list)])
    text = "\n".join(source.splitlines()[first - 1 : found.end_lineno])
    assert leaf.split(".")[-1] in text, f"{name} says nothing of {leaf}"
