"""Every option composes; every fault is one line; the passthrough matches DPOConfig."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf

from dpo.config.arguments import arguments
from dpo.config.checks.passthrough import ALLOWED, DERIVED, REFUSED
from dpo.config.failures import report
from dpo.config.folder import conf_folder, options
from dpo.config.parse import fingerprint, plain
from dpo.config.read import config_yaml, read_config
from dpo.config.schema import NODES
from dpo.errors import ConfigError, Refused

NEEDS = {
    ("model", "custom"): ["model.path=/models/mine"],
    ("dataset", "local"): ["dataset.path=pairs.jsonl"],
    ("dataset", "hub"): ["dataset.id=org/name"],
    ("dataset", "mixture"): ["dataset.parts=[shp,webgpt]"],
    ("hardware", "mps"): ["lora=lora"],
    ("dpo", "rloo"): ["dpo.reward=RUN"],
}
CASES = [(group, option) for group in NODES for option in options(group)]


@pytest.mark.parametrize(("group", "option"), CASES)
def test_every_option_composes_and_survives_the_run_directory(compose, tmp_path, group, option):
    config = compose(f"{group}={option}", *NEEDS.get((group, option), []))
    (tmp_path / "config.yaml").write_text(config_yaml(config))
    assert read_config(tmp_path / "config.yaml") == config


@pytest.mark.parametrize("option", options("experiment"))
def test_every_experiment_composes_and_asks_a_question(compose, option):
    config = compose(f"experiment={option}")
    assert config.name == option
    assert "# Question: " in (conf_folder() / "experiment" / f"{option}.yaml").read_text()


def test_command_line_wins_over_experiment_wins_over_group(compose):
    assert compose("experiment=llama3_1_8b_hh").dpo.learning_rate == 5e-7
    assert compose("experiment=llama3_1_8b_hh", "dpo.learning_rate=1e-5").dpo.learning_rate == 1e-5


def test_a_key_lives_in_one_yaml_per_option():
    for path in conf_folder().glob("*/shared.yaml"):
        shared = set(OmegaConf.load(path))
        for sibling in path.parent.glob("*.yaml"):
            if sibling != path:
                repeated = {
                    key
                    for key in OmegaConf.load(sibling)
                    if key in shared and OmegaConf.load(sibling)[key] == OmegaConf.load(path)[key]
                }
                assert not repeated, f"{sibling} repeats {repeated} of {path}"


def test_the_passthrough_lists_name_every_field_of_dpoconfig_once():
    import dataclasses

    from trl import DPOConfig

    fields = {field.name for field in dataclasses.fields(DPOConfig)}
    ours = [*ALLOWED, *DERIVED, *REFUSED]
    assert len(ours) == len(set(ours))
    assert set(ours) == fields


BAD = {
    "dpo.betta=1": "dpo.betta: unknown key; nearest: dpo.beta",
    "+dpo.betta=1": "dpo.betta: unknown key; nearest: dpo.beta",
    "+lora.quantization.bit=4": "lora.quantization.bit: unknown key; nearest: lora.quantization.bits",
    "dataset=shpp": "dataset=shpp: no such option; nearest: shp",
    "experiment=smok": "experiment=smok: no such option; nearest: smoke",
    "models=custom": "models: unknown key; nearest: model",
    "dpo.beta=-1": "dpo.beta=-1.0: must be above 0",
    "dpo.beta=nan": "dpo.beta=nan: must be above 0",
    "dpo.beta=x": "dpo.beta: Value 'x' of type 'str' could not be converted to Float",
    "lora.quantization.type=nf5": "expected one of [nf4, fp4]",
    "dpo.optimizer=adam": "expected one of [adamw, paged_adamw_8bit]",
    "lora.rank=0": "lora.rank=0: must be 1 to 4096",
    "lora.dropout=1": "lora.dropout=1.0: must be at least 0 and below 1",
    "dpo.beta=[": "dpo.beta=[: not an override",
    "name=../x": "name=../x: must be letters",
    "model=custom": "model.path: needs a value",
    "dpo.trainer.bf16=true": "decided by hardware.precision",
    "dpo.trainer.adam_beta3=1": "not a field of TRL's DPOConfig; nearest: adam_beta",
    "dpo.trainer.push_to_hub=true": "cannot be changed here",
    "dpo=ipo dataset.soft_labels=true": "only dpo=sigmoid learns from soft labels",
    "lora.target_modules=3": "must be all-linear, a list of module names or a pattern",
    "model.path=hf_abcdefghijklmnopqrstuvwxyz": "looks like a secret",
}


@pytest.mark.parametrize("argument", BAD)
def test_a_fault_on_the_command_line_is_one_line_with_its_exit_code(argument):
    done = run_train(*argument.split())
    assert done.returncode == (9 if "secret" in BAD[argument] else 2), done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert BAD[argument] in lines[0]


@pytest.mark.parametrize("words", ["A B --cfg job", "--cfg job A B", "A -c job B -p runs"])
def test_the_value_of_a_flag_is_no_folder(monkeypatch, capsys, words):
    from dpo.compare import main

    monkeypatch.setattr(sys, "argv", ["dpo.compare", *words.split()])
    main()
    out = capsys.readouterr().out
    assert "- A\n- B\n" in out
    assert "job" not in out


HEX = "0123456789abcdef" * 2 + "01234567"


@pytest.mark.parametrize(
    "word",
    [
        f"model.path=/hub/models--a--b/snapshots/{HEX}",
        f"model.path=~/hub/snapshots/{HEX}/",
        f"model.path={HEX}/model",
        f"runs=[/a/{HEX},/b/run-{HEX}]",
        f"model.revision={HEX}",
        f"model.adapter_revision={HEX}",
        "model.path=/data/task-with-a-long-name-of-its-own",
        f"/runs/{HEX}",
        f"./{HEX}",
    ],
)
def test_a_commit_in_a_path_is_no_secret(word):
    assert arguments([word], "run")


@pytest.mark.parametrize(
    "word",
    [
        HEX,
        f"name={HEX}",
        f"tracking.project={HEX.upper()}",
        f"name=local-{HEX}",
        f"+x=[a,{HEX}]",
        f"model.path=/a/b,name={HEX}",
        "name=sk-abcdefghijklmnopqrstuv",
        "model.path=/a/sk-abcdefghijklmnopqrstuv",
        "model.path=/a/hf_abcdefghijklmnopqrstuvwxyz",
        f"model.path=/a?token={HEX}",
    ],
)
def test_a_bare_key_is_a_secret(word):
    with pytest.raises(Refused, match="looks like a secret"):
        arguments([word], "run")


def test_full_training_refuses_quantization_and_lora_keys():
    asked = run_train("lora=full", "lora.quantization={bits: 4, type: nf4, double: true}")
    assert asked.returncode == 2
    assert len(asked.stderr.strip().splitlines()) == 1
    assert "lora.rank: unknown key" in run_train("lora=full", "lora.rank=4").stderr


@pytest.mark.parametrize("arguments", [["--help"], ["--cfg", "job"], ["dpo.beta=-1"]])
def test_help_config_and_errors_never_import_torch(arguments):
    probe = (
        "import sys, runpy, atexit\n"
        "heavy = {'torch', 'transformers', 'trl', 'wandb'}\n"
        "atexit.register(lambda: print('HEAVY', sorted(heavy & set(sys.modules))))\n"
        f"sys.argv[1:] = {arguments!r}\n"
        "runpy.run_module('dpo.train', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, timeout=60)
    assert "HEAVY []" in done.stdout
    if arguments == ["--help"]:
        assert "\ntracking: none, tensorboard, trackio, wandb (without it wandb)\n" in done.stdout


def test_fingerprint_follows_the_science_and_nothing_else(compose):
    base = fingerprint(compose())
    same = ["name=other", "tracking=none", "resume=never", "hardware.hourly_rate=3", "dpo.keep_checkpoints=5"]
    assert {fingerprint(compose(override)) for override in same} == {base}
    other = ["seed=1", "dpo.beta=0.2", "lora.rank=4", "dataset.limit=5", "dpo.trainer.adam_beta1=0.8"]
    plus = [o if "trainer" not in o else f"+{o}" for o in other]
    assert len({fingerprint(compose(override)) for override in plus} | {base}) == len(plus) + 1


def test_a_foreign_config_is_read_never_run(tmp_path):
    (tmp_path / "config.yaml").write_text(
        "seed: 0\ndpo:\n  _target_: os.system\n  command: touch /tmp/owned\noptions: {dpo: base_sigmoid}\n"
    )
    with pytest.raises(ConfigError, match=r"config\.yaml"):
        read_config(tmp_path / "config.yaml")
    (tmp_path / "config.yaml").write_text("name: ${oc.env:HOME}\noptions: {}\n")
    with pytest.raises(ConfigError, match="interpolation"):
        read_config(tmp_path / "config.yaml")
    (tmp_path / "config.yaml").write_text("options: {dpo: os.system}\n")
    with pytest.raises(ConfigError):
        read_config(tmp_path / "config.yaml")


def drop(config: dict, *keys: str) -> dict:
    """A config.yaml's data without some dotted keys."""
    for key in keys:
        *parents, last = key.split(".")
        node = config
        for parent in parents:
            node = node[parent]
        del node[last]
    return config


def test_a_run_written_before_a_key_existed_stays_readable(compose, tmp_path, capsys):
    path = tmp_path / "config.yaml"
    config = compose("dataset=shp", "+dpo.trainer.adam_beta1=0.8", "hardware=h100_80gb")
    raw = drop(
        yaml.safe_load(config_yaml(config)),
        "resume_anyway", "sweep.judge", "dataset.keep", "dpo.ld_alpha", "lora.dora", "hardware.attention",
    )  # fmt: skip
    path.write_text(yaml.safe_dump(raw))
    assert read_config(path) == config
    read_config(path)
    assert capsys.readouterr().err == (
        f"{path}: written without dataset.keep, dpo.ld_alpha, hardware.attention, lora.dora, "
        "resume_anyway, sweep.judge; read with today's defaults\n"
    )


@pytest.mark.parametrize("key", ["model.path", "lora.quantization.type", "dpo"])
def test_what_has_no_one_default_is_not_made_up(compose, tmp_path, key):
    """Options differ in it (other weights, nf4 or fp4), or it is a whole group."""
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(drop(yaml.safe_load(config_yaml(compose())), key)))
    with pytest.raises(ConfigError, match=key):
        read_config(path)


def test_plain_is_json(compose):
    import json

    assert json.loads(json.dumps(plain(compose())))["lora"]["quantization"]["type"] == "nf4"


def run_train(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "dpo.train", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=Path(__file__).parent,
    )


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (MemoryError(), "error: out of memory"),
        (
            RuntimeError(
                "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8000 bytes."
            ),
            "error: out of memory: tried to allocate 8000 bytes",
        ),
    ],
)
def test_a_failed_allocation_anywhere_is_exit_6_and_no_traceback(error, line, capsys):
    assert report(error) == 6
    assert capsys.readouterr().err.splitlines()[0] == line


@pytest.mark.parametrize("word", ["dataset.columns={prompt: question}", "dpo.trainer={adam_beta2: 0.95}"])
def test_a_free_mapping_can_be_given_as_a_whole(word: str) -> None:
    assert arguments([word], None) == [f"++{word}"]
