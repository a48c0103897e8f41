"""Where weights come from, and what is said when they cannot be had."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import tiny

from dpo.errors import ConfigError, Refused
from dpo.modeling import weights
from dpo.modeling.tokenizer import load_tokenizer
from dpo.modeling.weights import fingerprint, resolve

TEMPLATES = Path(__file__).parents[2] / "conf" / "model" / "templates"


def train(cwd: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "dpo.train", *arguments, "tracking=none"],
        cwd=cwd, capture_output=True, text=True, timeout=120,
        env={**os.environ, "DPO_OUTPUTS": str(cwd / "outputs"), **environment},
    )  # fmt: skip


@pytest.mark.parametrize("offline", ["1", "0"])
def test_a_hub_model_without_a_hub_is_exit_8_in_seconds(tmp_path, offline):
    # Nothing listens on this port, so the connection is refused as on a machine without a network.
    done = train(
        tmp_path, "model=llama3_1_8b", HF_HUB_OFFLINE=offline, HF_ENDPOINT="http://127.0.0.1:9", HF_HOME=str(tmp_path)
    )
    assert done.returncode == 8, done.stderr
    lines = done.stderr.strip().splitlines()
    assert 1 <= len(lines) <= 3
    assert "meta-llama/Llama-3.1-8B" in lines[0]
    assert "Traceback" not in done.stderr
    # Told before torch is imported, whose import alone takes seconds, and before there is a run directory.
    assert not (tmp_path / "outputs").exists()


def test_a_hub_that_stalls_is_given_up_on(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:  # accepts, never answers
        port = server.getsockname()[1]
        done = train(
            tmp_path, "model=custom", "model.path=some/model",
            HF_HUB_OFFLINE="0", HF_ENDPOINT=f"http://127.0.0.1:{port}", HF_HOME=str(tmp_path),
        )  # fmt: skip
    assert done.returncode == 8, done.stderr
    assert "did not answer" in done.stderr
    assert not (tmp_path / "outputs").exists()


class Hub(BaseHTTPRequestHandler):
    """Answers as the hub does for `org/NAME`: gated from the first word, or at the files only, missing, and so on."""

    def do_GET(self) -> None:
        name = self.path.partition("/org/")[2].split("/")[0].split("?")[0]
        about = "/api/models/" in self.path
        if name in ("open", "shown") and about:
            files = [{"rfilename": "README.md"}, {"rfilename": "config.json"}, {"rfilename": "model.safetensors"}]
            gated = "manual" if name == "shown" else False
            tree = [{"type": "file", "path": file["rfilename"], "size": 2, "oid": "a" * 40} for file in files]
            info = {"id": f"org/{name}", "sha": "0" * 40, "gated": gated, "siblings": files}
            self.answer(200, None, json.dumps(tree if "/tree/" in self.path else info).encode())
        elif name == "open":
            self.answer(403, None)  # breaks off in the download
        else:
            self.answer(*{
                "gated": (401, "GatedRepo"), "shown": (401, "GatedRepo"), "none": (404, "RepoNotFound"),
                "old": (404, "RevisionNotFound"),
            }.get(name, (404, None)))  # fmt: skip

    do_HEAD = do_GET

    def answer(self, code: int, error: str | None, body: bytes = b"") -> None:
        self.send_response(code)
        if error is not None:
            self.send_header("X-Error-Code", error)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture(scope="module")
def hub() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(("name", "says"), [("none", "no such model"), ("open", "the download broke off")])
def test_what_the_hub_refuses_is_told_apart(hub, tmp_path, name, says):
    """A real local server answers as the hub does; before torch is imported and a run directory made, if it can."""
    done = train(
        tmp_path, "model=custom", f"model.path=org/{name}",
        HF_HUB_OFFLINE="0", HF_ENDPOINT=hub, HF_HOME=str(tmp_path),
    )  # fmt: skip
    assert done.returncode == 8, done.stderr
    assert says in done.stderr
    assert len(done.stderr[done.stderr.index("error: ") :].strip().splitlines()) <= 3
    assert "Traceback" not in done.stderr
    assert (tmp_path / "outputs").exists() == (name == "open")


def test_more_that_the_hub_refuses(hub, tmp_path):
    """Asked in one process, as the verbs ask before anything else."""
    code = (
        "import sys\nfrom dpo.errors import NetworkError\nfrom dpo.modeling.weights import check_there\n"
        "for name in sys.argv[1:]:\n"
        "    try: check_there(f'org/{name}', 'main')\n"
        "    except NetworkError as error: print(str(error).replace('\\n', ' '))\n"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "0", "HF_ENDPOINT": hub, "HF_HOME": str(tmp_path)}
    words = [sys.executable, "-c", code, "gated", "shown", "old"]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=120)
    gated, shown, old = done.stdout.splitlines()
    assert "gated; accept the licence" in gated
    assert "gated; accept the licence" in shown
    assert "no revision" in old


def test_a_folder_without_weights_or_with_pickles_only_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="no such folder"):
        resolve(str(tmp_path / "none"), "main")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"no \*\.safetensors"):
        resolve(str(tmp_path), "main")
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(Refused, match=r"pytorch_model\.bin"):
        resolve(str(tmp_path), "main")


def test_the_fingerprint_follows_the_bytes(tmp_path):
    folder = tiny.make_model(tmp_path / "model")
    before = fingerprint(folder)
    assert fingerprint(folder) == before
    weights = folder / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    assert fingerprint(folder) != before
    # Of several files the index says which one each tensor is read from.
    index = folder / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"a": "one.safetensors"}}')
    before = fingerprint(folder)
    index.write_text('{"weight_map": {"a": "two.safetensors"}}')
    assert fingerprint(folder) != before


def test_a_tokenizer_without_template_needs_a_named_fallback(tmp_path):
    folder = tiny.make_model(tmp_path / "model")
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(ConfigError, match=r"model\.chat_template=NAME, one of chatml, plain_dialogue"):
        load_tokenizer(folder, None, TEMPLATES)
    with pytest.raises(ConfigError, match="nearest: chatml"):
        load_tokenizer(folder, "chatlm", TEMPLATES)
    tokenizer = load_tokenizer(folder, "chatml", TEMPLATES)
    text = tokenizer.apply_chat_template([{"role": "user", "content": "hill"}], tokenize=False)
    assert text == "<|im_start|>user\nhill<|im_end|>\n"
    assert tokenizer.pad_token is not None


def test_the_embedded_model_is_real():
    from transformers import AutoModelForCausalLM

    weights = resolve("embedded:smollm2-135m-instruct", "main")
    tokenizer = load_tokenizer(weights.folder, None, TEMPLATES)
    model = AutoModelForCausalLM.from_pretrained(weights.folder)
    asked = [{"role": "user", "content": "What is the capital of France?"}]
    ids = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.float().generate(**ids, max_new_tokens=10, do_sample=False)
    assert "Paris" in tokenizer.decode(answer[0][ids["input_ids"].shape[1] :])


def test_a_pipe_in_place_of_a_remembered_hash_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DPO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(weights, "SETTLED_SECONDS", -1.0)
    file = tmp_path / "file"
    file.write_text("x")
    known = weights.file_hash(file)
    (memo,) = (tmp_path / "cache" / "hashes").glob("*.json")
    memo.unlink()
    os.mkfifo(memo)
    assert weights.file_hash(file) == known
