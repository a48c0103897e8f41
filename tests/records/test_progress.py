"""What a run shows while it trains: a live bar on a terminal, a line a logged step elsewhere."""

from __future__ import annotations

import io
import re
import time

import pytest
from rich.console import Console

from dpo.records.progress import StageProgress, TrainingProgress

VALUES = {"loss": 0.5, "rewards/margins": 0.25, "rewards/accuracies": 0.75}


def show(terminal: bool) -> str:
    file = io.StringIO()
    console = Console(file=file, force_terminal=terminal, width=120, soft_wrap=not terminal)
    with TrainingProgress(4, 1, 8, console) as progress:
        progress.began -= 16.0  # two steps of eight pairs in sixteen seconds
        progress.show("train", 2, VALUES)
        time.sleep(0.02)  # the bar's ETA needs two steps at different times
        progress.show("train", 3, VALUES)
        progress.show("eval", 3, VALUES)
        if progress._bar is not None:
            progress._bar.refresh()
    return file.getvalue()


def test_elsewhere_a_step_is_one_line_with_all_of_it():
    _, line, dev = show(terminal=False).splitlines()
    step = r"step 3/4  loss 0\.5000  margin \+0\.250  accuracy 0\.75  1\.00 pairs/s  0:0[78] left"
    assert re.fullmatch(step, line)
    assert dev == "dev at step 3: loss 0.5000  margin +0.250  accuracy 0.75"


def test_while_nothing_has_moved_every_pair_is_a_tie():
    """At the start, and at the second step of a rate that begins at 0; what has moved a little is no tie."""
    file = io.StringIO()
    still = {**VALUES, "rewards/margins": -1.9e-7, "rewards/accuracies": 0.0}
    with TrainingProgress(4, 0, 8, Console(file=file, width=120)) as progress:
        progress.show("eval", 0, still)
        progress.show("train", 2, still)
        progress.show("train", 3, still | {"rewards/margins": 1e-4})
    dev, second, third = file.getvalue().splitlines()
    assert "accuracy ties" in dev
    assert "accuracy ties" in second
    assert "accuracy 0.00" in third


def test_on_a_terminal_it_is_a_bar_with_the_same_figures():
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", show(terminal=True))
    assert re.search(r"step .*3/4 .*\d:\d\d.*loss 0\.5000  margin \+0\.250  accuracy 0\.75  1\.00 pairs/s", shown)
    assert "dev at step 3: loss 0.5000" in shown
    assert "left" not in shown


@pytest.mark.parametrize("terminal", [True, False])
def test_a_long_count_is_never_silent(terminal):
    file = io.StringIO()
    with StageProgress(
        "reference log-probs", 99, console=Console(file=file, force_terminal=terminal, width=100)
    ) as progress:
        progress._spoke -= 11
        progress.reach(30, 90)
        if progress._bar is not None:
            progress._bar.refresh()
    assert re.search(r"reference log-probs.*30/90", file.getvalue().replace("\x1b[32m", ""))
