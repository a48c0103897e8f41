"""The sweep's folder and tasks, and the local launcher with real processes in place of training: light and quick."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from hydra.core.global_hydra import GlobalHydra

from dpo.config.folder import conf_folder, options
from dpo.config.sweeps import Grid, Launcher
from dpo.errors import ConfigError, Interrupted
from dpo.records.date import DATE, date_of_begin
from dpo.records.files import write_json, write_sealed
from dpo.sweeps.files import ending, read_job, read_sweep, write_sweep
from dpo.sweeps.local import run_local
from dpo.sweeps.run import lay_out
from dpo.sweeps.slots import Slots, find_slots
from dpo.sweeps.task import Task

WORK = """
import json, os, signal, socket, sys, time
import psutil
from dpo.sweeps.orphan import end_with_the_sweep
kind, log = sys.argv[1:]
end_with_the_sweep()
folder = os.environ["DPO_RUN_FOLDER"]
def record(status, code, reason=None):
    os.makedirs(folder, exist_ok=True)
    me = psutil.Process()
    with open(folder + "/run.json", "w") as file:
        json.dump({"status": status, "exit_code": code, "reason": reason, "step": 3, "max_steps": 8, "host":
                   socket.gethostname(), "pid": me.pid, "pid_started": me.create_time()}, file)
def stop(number, frame):
    record("interrupted", 128 + number, "interrupted by signal %d" % number)
    sys.exit(128 + number)
signal.signal(signal.SIGTERM, stop)
def note(word):
    with open(log, "a") as file:
        file.write(json.dumps([word, os.path.basename(folder), time.time(), os.environ.get("OMP_NUM_THREADS"),
                               os.environ.get("CUDA_VISIBLE_DEVICES"), os.getpid()]) + "\\n")
note("begin")
record("running", None)
if kind == "date":
    from dpo.records.date import date_of_begin
    with open(log + ".dates", "a") as file:
        print(date_of_begin({"created": time.time()}), file=file)
if kind == "die":
    os.kill(os.getpid(), signal.SIGKILL)
if kind == "early":
    os.remove(folder + "/run.json")
    print("error: dataset.path=x: no such file", file=sys.stderr)
    sys.exit(3)
if kind == "diverge":
    record("diverged", 5, "loss is not finite at step 3")
    sys.exit(5)
time.sleep(60 if kind == "long" else 0.3)
record("complete", 0)
note("end")
"""


@dataclass(frozen=True)
class Stand(Task):
    """A task whose training is WORK."""

    kind: str = "good"
    log: str = ""

    def left(self) -> Iterator[tuple[str, list[str]]]:
        if not self.trained():
            yield "train", [sys.executable, "-c", WORK, self.kind, self.log]


def stand(root: Path, name: str, kind: str = "good", gpus: int | None = 1) -> Stand:
    root.mkdir(exist_ok=True)
    return Stand(name, root, name, (), None, (), gpus, kind, str(root / "log"))


def events(root: Path) -> list[list]:
    return [json.loads(line) for line in (root / "log").read_text().splitlines()]


def lives(pid: int) -> bool:
    """Whether it runs; an orphan may stay a zombie where nobody collects them."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def state(task: Task) -> str:
    return ending(read_job(task.root, {"label": task.label, "folder": task.name, "values": {}}, None))


def test_failures_neither_stop_nor_falsify_the_others_and_only_they_run_again(tmp_path: Path) -> None:
    kinds = {"a": "good", "b": "die", "c": "early", "d": "diverge", "e": "good"}
    tasks = [stand(tmp_path / "s", name, kind) for name, kind in kinds.items()]
    told: list[str] = []
    run_local(tasks, Slots(2, 1), lambda task: told.append(task.name), lambda running: None)
    assert sorted(told) == list("abcde")
    assert [state(task) for task in tasks] == [
        "complete",
        "killed (signal 9): at step 3",
        "failed (exit 3): dataset.path=x: no such file",
        "diverged (exit 5): loss is not finite at step 3",
        "complete",
    ]
    again = [stand(tmp_path / "s", name) for name in kinds]
    (tmp_path / "s" / "log").unlink()
    run_local([task for task in again if not task.done()], Slots(2, 1), lambda task: None, lambda running: None)
    assert {name for word, name, *_ in events(tmp_path / "s") if word == "begin"} == {"b", "c", "d"}
    assert {state(task) for task in again} == {"complete"}


def test_as_many_at_once_as_there_are_slots_each_with_its_share(tmp_path: Path) -> None:
    tasks = [stand(tmp_path / "s", str(i)) for i in range(6)]
    most: list[int] = []
    run_local(tasks, Slots(3, 4, ["0", "5", "7"]), lambda task: None, lambda running: most.append(len(running)))
    assert max(most) == 3
    assert {event[3] for event in events(tmp_path / "s")} == {"4"}
    assert {event[4] for event in events(tmp_path / "s")} == {"0", "5", "7"}


def test_a_job_over_several_gpus_takes_their_slots() -> None:
    slots = Slots(4, 2, ["0", "1", "2", "3"])
    two = slots.take(2)
    assert two is not None
    assert slots.environment(two)["CUDA_VISIBLE_DEVICES"] == "0,1"
    assert slots.environment(two)["OMP_NUM_THREADS"] == "4"
    assert slots.take(3) is None
    assert slots.take(None) is None
    slots.give(two)
    assert slots.take(None) == [0, 1, 2, 3]
    assert Slots(2, 1).take(4) == [0]


def test_slots_follow_cores_and_memory(compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dpo.sweeps import slots

    (tmp_path / "model.safetensors").write_bytes(b"x" * 1000)
    job = compose("model=custom", f"model.path={tmp_path}", "hardware=cpu")
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    monkeypatch.setattr(slots, "free_host_memory", lambda: int(3.2 * 2**30))
    assert (find_slots(None, [job] * 9).count, find_slots(None, [job] * 9).threads) == (2, 2)
    monkeypatch.setattr(slots, "free_host_memory", lambda: 64 * 2**30)
    assert find_slots(None, [job] * 9).count == 4
    assert find_slots(None, [job] * 3).count == 3
    assert find_slots(8, [job] * 9).count == 8
    # Weights that are not on this machine: their size is not known, so one at a time.
    assert find_slots(None, [compose("model=custom", "model.path=org/far", "hardware=cpu")] * 3).count == 1
    gpu = compose("model=custom", f"model.path={tmp_path}")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    assert find_slots(None, [gpu] * 9).gpus == ["2", "3"]


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_reaches_every_job_and_leaves_the_truth(tmp_path: Path, signum: int) -> None:
    tasks = [stand(tmp_path / "s", name, "long") for name in "abc"]

    def look(running: list[Task]) -> None:
        if len(list((tmp_path / "s").glob("*/run.json"))) == 2:
            os.kill(os.getpid(), signum)

    with pytest.raises(Interrupted) as raised:
        run_local(tasks, Slots(2, 1), lambda task: None, look)
    assert raised.value.exit_code == 128 + signum
    assert [state(task).partition(" (")[0] for task in tasks] == ["interrupted", "interrupted", "waiting"]
    assert not any(psutil.pid_exists(event[5]) for event in events(tmp_path / "s"))


def test_jobs_of_a_killed_sweep_end_and_are_not_run_beside_the_next(tmp_path: Path) -> None:
    script = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from pathlib import Path; from test_sweep import stand; from dpo.sweeps.local import run_local\n"
        "from dpo.sweeps.slots import Slots\n"
        f"tasks = [stand(Path({str(tmp_path / 's')!r}), name, 'long') for name in 'ab']\n"
        "run_local(tasks, Slots(2, 1), print, lambda running: None)\n"
    )
    sweep = subprocess.Popen([sys.executable, "-c", script])
    while len(list((tmp_path / "s").glob("*/run.json"))) < 2:
        assert sweep.poll() is None
        time.sleep(0.05)
    pids = [event[5] for event in events(tmp_path / "s")]
    sweep.kill()
    sweep.wait()
    tasks = [stand(tmp_path / "s", name) for name in "ab"]
    # The next sweep begins while the first one's jobs are still there.
    assert all(task.busy() for task in tasks)
    run_local(tasks, Slots(2, 1), lambda task: None, lambda running: None)
    assert not any(lives(pid) for pid in pids)
    assert [state(task) for task in tasks] == ["complete", "complete"]
    begun = [(word, name) for word, name, *_ in events(tmp_path / "s")]
    assert sorted(begun) == [("begin", "a")] * 2 + [("begin", "b")] * 2 + [("end", "a"), ("end", "b")]


def grid(compose, *jobs: str, common: tuple[str, ...] = ()) -> Grid:
    made = [(compose(*common, *job.split()), [*job.split(), *common]) for job in jobs]
    return Grid(made, "local", Launcher())


def test_folders_hang_on_what_they_hold_and_a_grown_grid_renames_none(compose, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DPO_OUTPUTS", str(tmp_path))
    small = lay_out(grid(compose, "dpo.beta=0.1 lora.rank=8", "dpo.beta=0.1 lora.rank=16", "dpo.beta=0.2 lora.rank=8"))
    large = lay_out(
        grid(compose, *(f"dpo.beta={b} lora.rank={r}" for b in (0.1, 0.2, 0.3) for r in (4, 8, 16)),
             common=("tracking=none", "sweep.evaluate=false", "hardware.hourly_rate=2"))
    )  # fmt: skip
    assert small.root == large.root
    assert {task.name for task in small.tasks} <= {task.name for task in large.tasks}
    assert small.keys == ["dpo.beta", "lora.rank"]
    assert small.tasks[1].label == "beta 0.1, rank 16"
    assert small.tasks[0].name.startswith("beta0.1_rank8-")
    other = lay_out(grid(compose, "dpo.beta=0.1", "dpo.beta=0.2", common=("dpo.epochs=2",)))
    assert other.root != lay_out(grid(compose, "dpo.beta=0.1", "dpo.beta=0.2")).root
    with pytest.raises(ConfigError, match="same settings"):
        lay_out(grid(compose, "dpo.beta=0.1", "dpo.beta=0.1"))


def test_a_sweep_file_remembers_the_jobs_of_every_grid(tmp_path: Path) -> None:
    def job(name: str) -> dict:
        return {"label": name, "folder": name, "values": {"seed": 1}}

    write_sweep(tmp_path, ["seed"], None, [job("a"), job("b")])
    write_sweep(tmp_path, ["seed"], None, [job("b"), job("c")])
    assert [found.label for found in read_sweep(tmp_path).jobs] == ["a", "b", "c"]
    assert {found.state for found in read_sweep(tmp_path).jobs} == {"waiting"}
    with pytest.raises(ConfigError, match="not a sweep's folder"):
        read_sweep(tmp_path / "other")


def test_jobs_started_on_later_days_bear_the_date_on_which_the_sweep_began(tmp_path: Path) -> None:
    """A template that prints the date would give each day's jobs other held-out pairs."""
    root = tmp_path / "s"
    jobs = [{"label": name, "folder": name, "values": {}} for name in "abc"]
    root.mkdir()
    write_sweep(root, ["seed"], None, jobs[:2])
    began = json.loads((root / "sweep.json").read_text())
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", began["date"])
    write_sealed(root / "sweep.json", {**began, "date": "2020-02-29"})
    # Grown on another day.
    write_sweep(root, ["seed"], None, jobs)
    tasks = [stand(root, name, "date") for name in "abc"]
    run_local(tasks, Slots(1, 1), lambda task: None, lambda running: None)
    assert (root / "log.dates").read_text().split() == ["2020-02-29"] * 3


def test_a_run_outside_a_sweep_bears_the_date_it_began(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DPO_SWEEP", raising=False)
    monkeypatch.setenv(DATE, "2020-02-29")  # left over
    assert date_of_begin({"created": 0.0}) == "1970-01-01"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("sweep.evaluation.prompts=0", "sweep.evaluation.prompts=0: must be at least 1"),
        ("+sweep.evaluation.promts=3", "nearest: evaluation.prompts"),
        ("sweep.evaluation.split=tset", "expected one of [test, dev]"),
        ("sweep.judge=[ruls]", "judge=ruls: no such option; nearest: rules"),
    ],
)
def test_the_evaluation_is_checked_before_the_first_job(compose, words: str, said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        lay_out(grid(compose, "dpo.beta=0.1", "dpo.beta=0.2", common=(words,)))


def test_other_evaluation_settings_are_another_evaluation(compose) -> None:
    usual = lay_out(grid(compose, "seed=1", "seed=2"))
    other = lay_out(grid(compose, "seed=1", "seed=2", common=("sweep.evaluation.prompts=9",)))
    none = lay_out(grid(compose, "seed=1", "seed=2", common=("sweep.evaluate=false",)))
    assert usual.root == other.root == none.root
    assert usual.evaluation != other.evaluation
    assert "evaluation.prompts=9" in other.tasks[0].evaluate
    assert none.evaluation is None
    (more,) = {word for task in other.tasks for word in task.evaluate if "judge" in word}
    assert more == "judge=[rules]"


COLLECT = (
    "import sys; from dpo.config.entry import main; from dpo.config.schema import Config; sys.argv[1:] = {words!r}; "
    "main('config', Config, lambda c: print('RUN'), multirun=lambda g: print([g.launcher, g.settings.slots, "
    "[(c.name, c.dpo.beta, c.lora.rank, c.seed, c.dpo.learning_rate, *c.dpo.loss) for c, _ in g.jobs]]))"
)


def collect(*words: str) -> subprocess.CompletedProcess[str]:
    script = COLLECT.format(words=list(words))
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("option", options("sweep"))
def test_every_sweep_is_a_grid_and_asks_a_question(option: str) -> None:
    assert "# Question: " in (conf_folder() / "sweep" / f"{option}.yaml").read_text()
    done = collect(f"sweep={option}")
    assert done.returncode == 0, done.stderr
    launcher, slots, jobs = eval(done.stdout)  # noqa: S307 - printed by the line above
    assert (launcher, slots) == ("local", None)
    assert len(set(jobs)) == len(jobs) >= 3


def test_a_sweep_takes_an_experiment_a_grid_and_a_launcher() -> None:
    done = collect("sweep=beta", "experiment=smoke", "-m", "seed=1,2", "lora.rank=4", "hydra.launcher.slots=3")
    assert done.returncode == 0, done.stderr
    _, slots, jobs = eval(done.stdout)  # noqa: S307
    assert slots == 3
    assert [job[:4] for job in jobs] == [("smoke", beta, 4, seed) for beta in (0.03, 0.1, 0.3) for seed in (1, 2)]
    assert collect("sweep=beta", "hydra.mode=RUN").stdout == "RUN\n"
    assert "nearest: submitit_slurm" in collect("-m", "seed=1,2", "hydra/launcher=submitit_slum").stderr
    assert "hydra.launcher.slot: unknown key" in collect("-m", "seed=1,2", "hydra.launcher.slot=2").stderr
    bad = collect("sweep=beta", "lora.rank=0")
    assert bad.returncode == 2
    assert "lora.rank=0: must be" in bad.stderr


@pytest.fixture(autouse=True)
def clean_hydra() -> Iterator[None]:
    yield
    GlobalHydra.instance().clear()


def test_a_torn_outcome_is_no_error(tmp_path: Path) -> None:
    task = stand(tmp_path / "s", "a")
    (task.root / "a.json").write_text("{")
    assert state(task) == "waiting"
    write_json(task.root / "a.json", {"phase": "train", "exit_code": -9, "host": "h", "pid": 1, "pid_started": 0.0})
    assert state(task) == "killed (signal 9)"


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (-9, "evaluation killed (signal 9)"),
        (-15, "evaluation interrupted (signal 15)"),
        (143, "evaluation interrupted (exit 143)"),
        (6, "evaluation failed (exit 6): out of memory"),
    ],
)
def test_how_an_evaluation_ended_is_told_from_its_training(tmp_path: Path, code: int, said: str) -> None:
    task = stand(tmp_path / "s", "a")
    task.folder.mkdir()
    write_json(task.folder / "run.json", {"status": "complete", "exit_code": 0, "step": 8, "max_steps": 8})
    (task.root / "a.log").write_text("error: out of memory\n")
    outcome = {"phase": "evaluate", "exit_code": code, "host": socket.gethostname(), "pid": 1, "pid_started": 0.0}
    write_json(task.root / "a.json", outcome)
    assert ending(read_job(task.root, {"label": "a", "folder": "a", "values": {}}, "e")) == said
