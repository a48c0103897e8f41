"""Answers from an OpenAI-compatible server: a real one on the loopback, that also misbehaves."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from asked import asked

from dpo.errors import ConfigError, NetworkError
from dpo.evaluation.measure import measure
from dpo.records.read import json_file, json_lines

pytest.importorskip("openai", reason="the openai client is not installed: pip install openai")


class Server:
    """What was asked, and what to answer next: a list of HTTP codes served before the ordinary answers."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.faults: list[int] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if server.faults:
                    self.send_response(server.faults.pop(0))
                    self.send_header("retry-after-ms", "1")
                    self.end_headers()
                    return
                server.requests.append(body)
                cut = body["model"] == "base"
                answer = f"{body['model']} says {body['messages'][-1]['content']}"
                reply = {
                    "id": "x", "object": "chat.completion", "created": 0, "model": body["model"],
                    "choices": [{"index": 0, "message": {"role": "assistant", "content": answer},
                                 "finish_reason": "length" if cut else "stop"}],
                    "usage": {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8},
                }  # fmt: skip
                data = json.dumps(reply).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *args: object) -> None:
                return

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    @property
    def overrides(self) -> list[str]:
        url = f"http://127.0.0.1:{self.http.server_port}/v1"
        values = {"base_url": f"'{url}'", "policy": "aligned", "baseline": "base", "concurrency": 2}
        chosen = [f"evaluation.endpoint.{key}={value}" for key, value in values.items()]
        return [*chosen, "evaluation.samples_per_prompt=1"]


@pytest.fixture
def server() -> Iterator[Server]:
    started = Server()
    yield started
    started.http.shutdown()


def test_both_sides_are_asked_and_truncation_is_counted(run: Path, server: Server) -> None:
    folder = measure(asked(run, *server.overrides))
    assert sorted(r["model"] for r in server.requests) == ["aligned"] * 6 + ["base"] * 6
    assert {r["max_tokens"] for r in server.requests} == {8}
    assert {r["top_k"] for r in server.requests} == {50}
    assert all((r["stop_token_ids"], r["stop"]) == ([2], ["<|im_end|>"]) for r in server.requests)
    summary = json_file(folder / "summary.json")
    assert summary["answers"]["policy"]["truncated"] == 0
    assert summary["answers"]["baseline"]["truncated"] == 6
    # Without token ids there is nothing to measure KL on.
    assert summary["divergence"] is None
    for sample in json_lines(folder / "samples.jsonl"):
        assert sample["policy"]["answer"] == f"aligned says {sample['messages'][-1]['content']}"
        assert sample["baseline"]["answer"] == f"base says {sample['messages'][-1]['content']}"


def test_a_server_without_model_names_is_refused_before_anything_is_loaded(run: Path) -> None:
    with pytest.raises(ConfigError, match=r"evaluation\.endpoint\.policy"):
        asked(run, "evaluation.endpoint.base_url='http://127.0.0.1:1/v1'")


def test_passing_faults_are_retried(run: Path, server: Server) -> None:
    server.faults = [429, 500, 503]
    measure(asked(run, *server.overrides))
    assert len(server.requests) == 12


def test_a_server_that_refuses_ends_with_one_error_and_keeps_what_it_gave(run: Path, server: Server) -> None:
    server.faults = [401] * 100
    with pytest.raises(NetworkError, match=r"AuthenticationError[\s\S]*the same command asks for the rest"):
        measure(asked(run, *server.overrides))
    server.faults = []
    folder = measure(asked(run, *server.overrides))
    assert len(json_lines(folder / "answers.jsonl")) == 12
