"""A W&B workspace as code: what to look at in runs and sweeps. Needs the extra `dashboard`."""

from __future__ import annotations

from typing import Any

import wandb_workspaces.reports.v2.interface as wr
import wandb_workspaces.workspaces as ws

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


def build(entity: str, project: str, name: str, group: str | None) -> Any:
    """The workspace, not yet saved; nothing is asked of a server."""
    curves: list[Any] = [wr.LinePlot(title=title, x="Step", y=list(keys)) for title, keys in CURVES]
    columns = [wr.ParallelCoordinatesPlotColumn(wr.Config(f"config.{key}"), display_name=shown) for key, shown in SWEPT]
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


def as_json(workspace: Any) -> dict[str, Any]:
    """What would be saved, as the server takes it."""
    found: dict[str, Any] = workspace._to_model().model_dump(mode="json", by_alias=True, exclude_none=True)
    return found
