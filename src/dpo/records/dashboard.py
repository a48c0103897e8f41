"""A W&B workspace as code: what to look at in runs and sweeps. Needs the extra `dashboard`."""

from __future__ import annotations

import contextlib
import hashlib
from typing import Any

import wandb_workspaces.reports.v2.interface as wr
import wandb_workspaces.workspaces as ws
from wandb_workspaces.workspaces import internal

SWEPT = (("dpo.beta", "beta"), ("lora.rank", "rank"), ("dpo.learning_rate", "learning rate"))
CURVES = (
    ("Loss", ["train/loss", "eval/loss"]),
    ("Reward margin", ["train/rewards/margins", "eval/rewards/margins"]),
    ("Reward accuracy", ["train/rewards/accuracies", "eval/rewards/accuracies"]),
    ("Rewards of both sides", ["train/rewards/chosen", "train/rewards/rejected"]),
    ("Gradient norm", ["train/grad_norm"]),
    ("Throughput (pairs/s)", ["train/pairs_per_second"]),
)
EVALUATED = (("Reward accuracy", "evaluation/accuracy"), ("KL from the reference (nats an answer)", "evaluation/kl"))


class SettingColumn(wr.ParallelCoordinatesPlotColumn):
    """A setting by its dotted name, which the library would take for a value nested in the first part of it."""

    def _to_model(self) -> Any:
        assert isinstance(self.metric, wr.Config)
        model = super()._to_model()
        model.accessor = f"config:{self.metric.name}.value"
        return model


def build(entity: str, project: str, name: str, group: str | None) -> Any:
    """The workspace, not yet saved; nothing is asked of a server."""
    curves: list[Any] = [wr.LinePlot(title=title, x="Step", y=list(keys)) for title, keys in CURVES]
    columns = [SettingColumn(wr.Config(key), display_name=shown) for key, shown in SWEPT]
    training = [
        wr.ParallelCoordinatesPlotColumn(wr.SummaryMetric(key), display_name=shown)
        for key, shown in (("eval/rewards/accuracies", "dev accuracy"), ("eval/rewards/margins", "dev margin"))
    ]
    evaluated = [
        wr.ParallelCoordinatesPlotColumn(wr.SummaryMetric(key), display_name=shown) for shown, key in EVALUATED
    ]
    kl = wr.SummaryMetric("evaluation/kl")
    quality: list[Any] = [wr.BarPlot(title=title, metrics=[key]) for title, key in EVALUATED]
    quality.append(wr.ScatterPlot(title="Reward accuracy against KL", x=kl, y=wr.SummaryMetric("evaluation/accuracy")))
    return ws.Workspace(
        entity=entity,
        project=project,
        name=name,
        sections=[
            ws.Section(name="Training", panels=curves, is_open=True),
            ws.Section(name="Evaluation", panels=quality, is_open=True),
            ws.Section(
                name="Swept keys",
                panels=[
                    wr.ParallelCoordinatesPlot(title="Swept keys and dev metrics", columns=[*columns, *training]),
                    wr.ParallelCoordinatesPlot(title="Swept keys and evaluation", columns=[*columns, *evaluated]),
                ],
                is_open=True,
            ),
        ],
        runset_settings=ws.RunsetSettings(
            groupby=[ws.Metric("Group")],
            filters="" if group is None else ws.And(ws.Metric("Group") == group),
        ),
    )


def save(workspace: Any) -> str:
    """Save the workspace, over the one that an earlier call saved for its project; returns its URL.

    The view's name is a hash of what it shows, so that the server has one of it.
    """
    words = f"{workspace.entity}/{workspace.project}/{workspace.name}"
    name = hashlib.sha256(words.encode()).hexdigest()[:11]
    workspace._internal_name = internal._url_query_str_to_internal_name(name)
    # A ValueError says that there is none, or no project yet.
    with contextlib.suppress(ValueError):
        workspace._internal_id = internal.get_view_dict(workspace.entity, workspace.project, name)["id"]
    return str(workspace.save().url)


def as_json(workspace: Any) -> dict[str, Any]:
    """What would be saved, as the server takes it."""
    found: dict[str, Any] = workspace._to_model().model_dump(mode="json", by_alias=True, exclude_none=True)
    return found
