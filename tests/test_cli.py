"""`dpo-train`: verbs, flags, the first tool's files, and completion in a real shell."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny

from dpo import cli
from dpo.command import classic

ROOT = Path(__file__).parents[1]


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """An empty working folder, with what a command line may change put back afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DPO_OUTPUTS", "unset")
    monkeypatch.delenv("DPO_OUTPUTS")
    monkeypatch.setattr(sys, "argv", ["dpo-train"])
    return tmp_path


@pytest.fixture(scope="session")
def command(tmp_path_factory) -> Path:
    """A folder with the console script, as pip would write it."""
    folder = tmp_path_factory.mktemp("bin")
    script = folder / "dpo-train"
    script.write_text(
        f"#!{sys.executable}\nimport sys\nfrom dpo.cli import main\nif __name__ == '__main__':\n    sys.exit(main())\n"
    )
    script.chmod(0o755)
    return folder


def environment(command: Path) -> dict[str, str]:
    return {**os.environ, "PATH": f"{command}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT / "src")}


def call(*words: str) -> int:
    """Exit code of `dpo-train words`, in this process."""
    try:
        cli.main(list(words))
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def test_the_script_is_the_one_pip_installs():
    assert re.search(r'^dpo-train = "dpo\.cli:main"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)


def test_help_and_errors_import_nothing_heavy(tmp_path):
    code = (
        "import sys, contextlib\nfrom dpo import cli\n"
        "for words in (['--help'], ['trian'], ['init', '--help'], ['train', '--epochs', 'x'], ['status']):\n"
        "    with contextlib.suppress(SystemExit): cli.main(words)\n"
        "    print(words, [m for m in ('torch', 'transformers', 'trl', 'wandb', 'datasets') if m in sys.modules])\n"
        "    if words == ['--help']: print('hydra' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.stdout.count("[]") == 5, done.stdout + done.stderr
    assert "False" in done.stdout
    for verb in cli.VERBS:
        assert f"  {verb}" in done.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["trian"], "trian: unknown verb; nearest: train"),
        (["prepare-datset"], "nearest: prepare-dataset"),
        (["train", "--epoch", "5"], "--epoch: unknown flag of dpo-train train; nearest: --epochs"),
        (["train", "--learning_rte=1"], "nearest: --learning-rate"),
        (["train", "--epochs"], "--epochs: needs a value"),
        (["train", "--epochs", "--beta", "1"], "--epochs: needs a value"),
        (["train", "--epochs", "five"], "--epochs=five: must be a number"),
        (["train", "--batch_size", "2.5"], "--batch_size=2.5: must be a whole number"),
        (["train", "--beta", "-1"], "dpo.beta=-1.0: must be above 0"),
        (["train", "--quantization-bits", "3"], "quantization_bits=3: must be 4, 8 or 16"),
        (["train", "--dataset", "hh_rlfh"], "hh_rlfh: neither a dataset nor a file here; nearest: hh_rlhf"),
        (["prepare-dataset", "--source", "webgtp", "--limit", "9"], "nearest: webgpt"),
        (["prepare", "--epochs", "3"], "--epochs: unknown flag of dpo-train prepare"),
        (["init", "model=x"], "model=x: init takes only flags"),
        (["init", "--dataset", "nope"], "dataset_source=nope: neither a dataset nor a file here"),
        (["evaluate"], "no run named, and no complete one under outputs"),
    ],
)  # fmt: skip
def test_a_bad_command_line_is_one_line_and_exit_2(here, capsys, words, said):
    assert call(*words) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("flag:")]
    assert len(errors) == 1
    assert said in errors[0]
    assert not list(here.iterdir())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"lora_rnk": 3}', "lora_rnk: unknown field; nearest: lora_rank"),
        ('{"beta": "x"}', "beta=x: must be a number"),
        ('{"lora_rank": true}', "lora_rank=True: must be a whole number"),
        ('{"model_name": 3}', "model_name=3: must be text"),
        ('{"batch_size": [1]}', "batch_size=[1]: must be a whole number"),
        ("[1]", "must hold an object of fields"),
        ('{"beta": 0.1', "not readable as JSON"),
    ],
)
def test_a_bad_file_is_one_line_and_exit_2(here, capsys, text, said):
    (here / classic.CONFIG_FILE).write_text(text)
    assert call("train") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert classic.CONFIG_FILE in line
    assert said in line


def test_a_verb_that_has_not_landed_says_so(here, capsys, monkeypatch):
    monkeypatch.setitem(cli.VERBS, "fly", cli.Verb("dpo.fly", "not there"))
    assert call("fly") == 2
    assert capsys.readouterr().err == "error: fly: not in this version yet\n"


def composed(capsys, *words: str) -> tuple[object, str]:
    """What `dpo-train words --cfg job` composes to, and what it printed about it."""
    from omegaconf import OmegaConf

    capsys.readouterr()
    assert call(*words, "--cfg", "job") == 0
    out = capsys.readouterr()
    return OmegaConf.create(out.out), out.err


def test_the_first_tools_commands_keep_working(here, capsys):
    assert call("init", "--model", "meta-llama/Llama-3.1-8B", "--dataset", "hh-rlhf") == 0
    assert "5e-07 barely moves a LoRA adapter; try" in capsys.readouterr().out
    fields = json.loads((here / ".dpo_config.json").read_text())
    assert list(fields) == [
        "model_name", "dataset_source", "lora_rank", "lora_alpha", "quantization_bits", "beta", "learning_rate",
        "epochs", "batch_size", "max_length", "output_dir",
    ]  # fmt: skip
    cfg, said = composed(
        capsys, "train", "--epochs", "5", "--beta", "0.05", "--learning-rate", "1e-7", "--batch_size", "2"
    )
    assert cfg.model.path == "meta-llama/Llama-3.1-8B"
    assert cfg.model.chat_template == "plain_dialogue"
    assert cfg.dataset.hub == "Anthropic/hh-rlhf"
    assert (cfg.dpo.epochs, cfg.dpo.beta, cfg.dpo.learning_rate, cfg.dpo.batch_size) == (5, 0.05, 1e-7, 2)
    assert (cfg.lora.rank, cfg.lora.alpha, cfg.lora.quantization.bits, cfg.dataset.max_length) == (8, 16, 4, 512)
    assert ".dpo_config.json: dataset_source=hh-rlhf -> dataset=hh_rlhf" in said
    assert "flag: beta=0.05 -> dpo.beta=0.05" in said
    assert ".dpo_config.json: beta" not in said
    cfg, said = composed(capsys, "prepare-dataset", "--source", "webgpt", "--limit", "1000")
    assert (cfg.dataset.source, cfg.dataset.limit, cfg.dataset.max_length) == ("webgpt", 1000, 512)
    assert call("status") == 0
    assert "no runs under outputs" in capsys.readouterr().out


def test_every_field_reaches_the_config(here, capsys):
    """Each entry of the table, given as flag and in the file, changes what is composed; a dead one would not."""
    other = {
        "model_name": "org/name", "dataset_source": "shp", "lora_rank": 4, "lora_alpha": 2, "quantization_bits": 16,
        "beta": 0.3, "learning_rate": 0.001, "epochs": 2, "batch_size": 3, "max_length": 99,
    }  # fmt: skip
    plain, _ = composed(capsys, "train")
    flags = {name: [f"--{name.replace('_', '-')}", str(value)] for name, value in other.items()}
    for name, flag in flags.items():
        assert composed(capsys, "train", *flag)[0] != plain, name
    flagged, _ = composed(capsys, "train", *(word for flag in flags.values() for word in flag))
    (here / classic.CONFIG_FILE).write_text(json.dumps(other))
    assert composed(capsys, "train")[0] == flagged
    assert set(other) | {"output_dir"} == set(classic.FIELDS)
    (here / classic.CONFIG_FILE).write_text(json.dumps({"output_dir": "elsewhere"}))
    assert call("status") == 0
    assert "no runs under elsewhere" in capsys.readouterr().out


def test_what_is_typed_wins_over_flag_and_file(here, capsys):
    (here / classic.CONFIG_FILE).write_text(json.dumps({"model_name": "org/name", "beta": 0.3, "lora_rank": 4}))
    cfg, said = composed(capsys, "train", "--beta", "0.1", "--beta=0.2", "dpo.beta=0.4", "model=smollm2_135m")
    assert "--beta=0.1: overridden by --beta=0.2 behind it" in said
    assert "flag: beta=0.2: overridden by dpo.beta=0.4" in said
    assert cfg.dpo.beta == 0.4
    assert cfg.model.path == "embedded:smollm2-135m-instruct"
    assert cfg.lora.rank == 4
    cfg, _ = composed(capsys, "train", "lora=full")
    assert "rank" not in cfg.lora
    cfg, said = composed(capsys, "train", "experiment=quickstart", "--beta", "0.2")
    assert (cfg.dpo.beta, cfg.lora.rank, cfg.name) == (0.2, 8, "quickstart")
    assert "left aside" in said


def test_init_never_overwrites_silently(here, capsys):
    assert call("init") == 0
    before = {path.name: path.read_text() for path in here.iterdir()}
    assert set(before) == {".dpo_config.json", "dpo_requirements.txt", "dpo_train.py"}
    assert call("init") == 0
    (here / "dpo_train.py").write_text("mine\n")
    assert call("init", "--beta", "0.2") == 2
    assert "error: .dpo_config.json, dpo_train.py: already here" in capsys.readouterr().err
    assert (here / "dpo_train.py").read_text() == "mine\n"
    assert json.loads((here / ".dpo_config.json").read_text())["beta"] == 0.1
    assert call("init", "--beta", "0.2", "--learning-rate", "2e-5", "--force") == 0
    assert json.loads((here / ".dpo_config.json").read_text())["beta"] == 0.2
    assert "barely moves" not in capsys.readouterr().out
    assert before["dpo_train.py"] == (here / "dpo_train.py").read_text()


def test_the_requirements_are_what_is_installed(here):
    from importlib.metadata import version

    from packaging.requirements import Requirement

    call("init")
    lines = [line for line in (here / "dpo_requirements.txt").read_text().splitlines() if not line.startswith("#")]
    pinned = {Requirement(line).name: Requirement(line) for line in lines}
    assert {"torch", "transformers", "trl", "peft", "hydra-core"} <= set(pinned)
    assert "pytest" not in pinned
    assert all(version(name).split("+")[0] in requirement.specifier for name, requirement in pinned.items())


def test_init_then_train_then_the_newest_run(here, capsys):
    """The whole of the first tool's path on a tiny model, and where the run landed is found without naming it."""
    model, pairs = tiny.make_model(here / "model"), tiny.make_pairs(here / "pairs.jsonl")
    words = ["--model", str(model), "--dataset", str(pairs), "--output-dir", "made", "--learning-rate", "1e-3"]
    assert call("init", *words) == 0
    more = ["--batch-size", "2", "dpo.max_steps=2", "tracking=none", "hardware=cpu"]
    code, output = tiny.run("cli", ["train", *more], here)
    assert code == 0, output
    assert "step 2/2" in output
    assert f"dataset_source={pairs} -> dataset=local" in output
    (run,) = (here / "outputs" / "run").iterdir()  # exported DPO_OUTPUTS wins over the file's output_dir
    os.environ["DPO_OUTPUTS"] = str(here / "outputs")
    capsys.readouterr()
    assert call("report") == 0
    said = capsys.readouterr()
    assert f"newest complete run: {run}" in said.err
    assert str(run / "report.html") in said.out
    assert call("compare", str(run.with_name("other")), str(run)) == 2
    assert f"other: no such run; allowed: {run.name}" in capsys.readouterr().err


@pytest.mark.slow
def test_the_first_tools_whole_day(here, command):
    """Its commands one after another, as its users typed them, on a tiny model and rows of their own."""
    model, pairs = tiny.make_model(here / "model"), tiny.make_pairs(here / "pairs.jsonl", 60)
    short = ["dpo.max_steps=2", "tracking=none", "hardware=cpu"]

    def typed_out(*words: str) -> str:
        done = subprocess.run(
            words, cwd=here, env=environment(command), capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    typed_out("dpo-train", "init", "--model", str(model), "--dataset", str(pairs))
    typed_out("dpo-train", "prepare-dataset", "--source", str(pairs), "--limit", "20")
    (prepared,) = (here / "outputs" / "data").glob("*/data.json")
    assert json.loads(prepared.read_text())["kept"]["train"] == 20
    typed_out(sys.executable, "dpo_train.py", *short)
    flags = ["--epochs", "5", "--beta", "0.05", "--learning-rate", "1e-7", "--batch_size", "2"]
    typed_out("dpo-train", "train", *flags, *short)
    # In the file's output_dir; the names of folders begin with the time.
    first, second = sorted((here / "outputs" / "run").iterdir())
    from dpo.config.read import read_config

    found = [read_config(run / "config.yaml") for run in (first, second)]
    assert [(c.dpo.epochs, c.dpo.beta, c.dpo.learning_rate, c.dpo.batch_size) for c in found] == [
        (3, 0.1, 5e-7, 4),
        (5, 0.05, 1e-7, 2),
    ]
    few = ["evaluation.prompts=4", "evaluation.max_new_tokens=4"]
    assert f"newest complete run: {second.relative_to(here)}" in typed_out("dpo-train", "evaluate", *few)
    typed_out("dpo-train", "evaluate", str(first), *few)
    said = typed_out("dpo-train", "compare", str(first), str(second))
    (compared,) = (here / "outputs" / "comparisons").iterdir()
    assert f"comparison in {compared.relative_to(here)}" in said
    assert {first.name, second.name} <= set(
        re.findall(r"\d{8}-\d{6}-\w{10}", (compared / "comparison.json").read_text())
    )
    assert typed_out("dpo-train", "status").count("complete") >= 2


@pytest.mark.slow
def test_the_written_script_trains_the_embedded_model(here, command):
    done = subprocess.run(
        ["dpo-train", "init", "--model", "smollm2_135m", "--dataset", "synthetic", "--batch-size", "1"],
        cwd=here, env=environment(command), capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    done = subprocess.run(
        [sys.executable, here / "dpo_train.py", "dpo.max_steps=2", "dpo.eval_limit=1", "tracking=none"],
        cwd=here.parent, env=environment(command), capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "step 2/2" in done.stdout
    assert "model=smollm2_135m" in done.stderr


SHELLS = {
    "bash": (["--norc", "--noprofile", "-i"], 'eval "$(dpo-train -sc install=bash)"'),
    "zsh": (["-f", "-i"], 'eval "$(dpo-train -sc install=zsh)"'),
    "fish": ([], "dpo-train -sc install=fish | source"),
}
COMPLETIONS = [
    ("dpo-train synth", "dpo-train synthesize"),
    ("dpo-train train dataset=synt", "dpo-train train dataset=synthetic"),
    ("dpo-train train lora=full dpo.weight_d", "dpo.weight_decay="),
    ("dpo-train train --learning", "--learning-rate"),
    ("dpo-train evaluate outp", "dpo-train evaluate outputs"),
]


def typed(shell: str, command: Path, folder: Path, text: str, expected: str) -> str:
    """Type `text` and a tab into an interactive shell with the completion installed; what the terminal showed."""
    words, install = SHELLS[shell]
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(folder)
        plain = environment(command) | {"TERM": "dumb", "PS1": "", "ZDOTDIR": str(folder), "HOME": str(folder)}
        os.execvpe(shell, [shell, *words], plain)  # noqa: S606
    shown, deadline = "", time.monotonic() + 60

    def until(mark: str) -> None:
        nonlocal shown
        while mark not in shown and time.monotonic() < deadline:
            if select.select([terminal], [], [], 0.5)[0]:
                shown += os.read(terminal, 4096).decode(errors="replace")

    try:
        os.write(terminal, f'{install}; echo rea""dy\n'.encode())
        until("ready\r\n")
        shown = ""
        os.write(terminal, f"{text}\t".encode())
        until(expected)
        return shown
    finally:
        os.write(terminal, b"\x15exit\n")
        os.close(terminal)
        os.waitpid(pid, 0)


@pytest.mark.parametrize(
    ("shell", "text", "expected"),
    [
        pytest.param(shell, *line, marks=[pytest.mark.slow] if shell == "zsh" and i % 3 else [])
        for shell in ("bash", "zsh")
        for i, line in enumerate(COMPLETIONS)
    ],
)
def test_completion_in_a_real_shell(command, tmp_path, shell, text, expected):
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    (tmp_path / "outputs").mkdir()
    assert expected in typed(shell, command, tmp_path, text, expected)


def test_completion_in_a_real_fish(command, tmp_path):
    """fish completes a line that it is handed, without a terminal."""
    if shutil.which("fish") is None:
        pytest.skip("fish is not installed")
    (tmp_path / "outputs").mkdir()
    several = [*COMPLETIONS, ("dpo-train pre", "prepare-dataset")]
    lines = [SHELLS["fish"][1], *(f"complete -C {text!r}; echo ==" for text, _ in several)]
    done = subprocess.run(
        ["fish", "--no-config", "-c", "\n".join(lines)], cwd=tmp_path, capture_output=True, text=True, timeout=120,
        env=environment(command) | {"HOME": str(tmp_path)},
    )  # fmt: skip
    *offered, rest = done.stdout.split("==\n")
    assert rest == "", done.stderr
    for (_, expected), choices in zip(several, offered, strict=True):
        assert expected.split()[-1] in choices.replace("/", "").splitlines()


def test_completion_offers_options_and_no_schema_nodes(command, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COMP_LINE", "dpo-train train dataset=")
    monkeypatch.setattr(sys, "argv", ["dpo-train"])
    from dpo.config.folder import options

    assert call("-sc", "query=bash") == 0
    assert sorted(capsys.readouterr().out.split()) == [f"dataset={name}" for name in options("dataset")]
