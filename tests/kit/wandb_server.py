"""A W&B server on loopback: enough of its GraphQL and file-stream API for a client to go online, or to suffer."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import yaml

PROJECT = {
    "id": "cHJvamVjdA==", "name": "check", "entity": {"name": "tester", "id": "e"}, "organization": None,
}  # fmt: skip


class Server(ThreadingHTTPServer):
    """`mode`: well, broken (answers 500), stall (accepts and says nothing), half (answers a probe, stalls on a run),
    refuse (answers a probe, and everything else with 403).

    What was sent is in `received`; `mode` may change while clients are connected. `runs` is what a run's page has:
    how often it was opened, name, job type, config, tags, sweep, history rows, summary, artifacts; `views` the
    workspaces. `queue` holds the settings that an agent of W&B Sweeps gets, one run each; after them it is told to end.
    """

    daemon_threads = True

    def __init__(self, mode: str = "well") -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.mode = mode
        self.received: list[tuple[str, Any]] = []
        self.runs: dict[str, dict[str, Any]] = {}
        self.views: dict[str, dict[str, Any]] = {}
        self.queue: list[dict[str, Any]] = []
        self.sweep: str | None = None
        self.ended = threading.Event()
        self.connections: list[Any] = []
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def stop(self) -> None:
        """Close as a machine that is switched off does: the port refuses, open connections are cut."""
        self.ended.set()
        self.shutdown()
        self.server_close()
        for connection in self.connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hung up is no news."""


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def setup(self) -> None:
        super().setup()
        self.server.connections.append(self.connection)

    def log_message(self, *args: Any) -> None:
        """Quiet."""

    def _do(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        if self.server.mode == "stall" or (self.server.mode == "half" and b"Probe" not in body):
            self.server.ended.wait(300)
            return
        if self.server.mode == "broken":
            self._answer({"error": "broken"}, 500)
            return
        if self.server.mode == "refuse" and b"Probe" not in body:
            self._answer({"errors": [{"message": "permission denied"}]}, 403)
            return
        if self.path.startswith("/graphql"):
            asked = json.loads(body)
            self.server.received.append(("graphql", asked))
            self._answer({"data": graphql(asked, self.server)})
        elif self.path.endswith("/file_stream"):
            sent = json.loads(body)
            self.server.received.append(("file_stream", sent))
            keep(self.server.runs[self.path.split("/")[-2]], sent)
            self._answer({})
        else:
            self.server.received.append((self.path, len(body)))
            self._answer({})

    do_GET = do_POST = do_PUT = _do

    def _answer(self, content: Any, code: int = 200) -> None:
        data = json.dumps(content).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def keep(run: dict[str, Any], sent: dict[str, Any]) -> None:
    """What a file stream says, on the run's page; lines go where their offset says."""
    files = sent.get("files", {})
    if history := files.get("wandb-history.jsonl"):
        run["history"][history["offset"] :] = map(json.loads, history["content"])
    for line in files.get("wandb-summary.json", {}).get("content", []):
        run["summary"] = json.loads(line)
    run["exitcode"] = sent.get("exitcode", run["exitcode"])


def graphql(asked: dict[str, Any], server: Server) -> dict[str, Any]:
    """The answer to one query, by what it asks for."""
    query, variables = asked["query"], asked.get("variables") or {}
    for name, answer in ANSWERS.items():
        if name in query:
            return answer(variables, server)
    return {}


def _resume(variables: dict[str, Any], server: Server) -> dict[str, Any]:
    run = server.runs.get(variables["name"])
    bucket = None if run is None else {
        "id": "cnVu", "name": variables["name"], "summaryMetrics": json.dumps(run["summary"]),
        "displayName": run["name"], "logLineCount": 0, "historyLineCount": len(run["history"]), "eventsLineCount": 0,
        "historyTail": json.dumps([json.dumps(row) for row in run["history"][-1:]]), "eventsTail": "[]",
        "config": json.dumps(run["config"]), "tags": run["tags"], "notes": None, "wandbConfig": json.dumps({"t": {}}),
    }  # fmt: skip
    return {"model": {"bucket": bucket, **PROJECT}}


def _begin(variables: dict[str, Any], server: Server) -> dict[str, Any]:
    empty = {"opened": 0, "name": None, "job_type": None, "tags": [], "config": {}, "history": [], "summary": {},
             "artifacts": {}, "sweep": None, "exitcode": None, "commit": None, "project": None}  # fmt: skip
    inserted = variables["name"] not in server.runs
    run = server.runs.setdefault(variables["name"], empty)
    run["opened"] += variables["host"] is not None
    told = {"name": "displayName", "job_type": "jobType", "tags": "tags", "sweep": "sweep", "commit": "commit",
            "project": "project"}  # fmt: skip
    run |= {key: variables[name] for key, name in told.items() if variables.get(name)}
    run["config"] |= json.loads(variables.get("config") or "{}")
    bucket = {
        "id": "cnVu", "name": variables["name"], "displayName": run["name"], "description": None, "config": None,
        "sweepName": run["sweep"], "historyLineCount": len(run["history"]), "project": PROJECT,
    }  # fmt: skip
    return {"upsertBucket": {"bucket": bucket, "inserted": inserted}}


def _artifact(variables: dict[str, Any], server: Server) -> dict[str, Any]:
    """As if the server had these files already, so that none is uploaded."""
    given = variables["input"]
    server.runs[given["runName"]]["artifacts"][given["artifactCollectionName"]] = given["artifactTypeName"]
    latest = {"id": "YQ==", "versionIndex": 0}
    return {"createArtifact": {"artifact": {
        "id": "YQ==", "state": "COMMITTED", "artifactSequence": {"id": "cw==", "latestArtifact": latest},
    }}}  # fmt: skip


def _files(variables: dict[str, Any], server: Server) -> dict[str, Any]:
    files = [{"name": name, "uploadUrl": None} for name in variables.get("files", [])]
    return {"createRunFiles": {"runID": "cnVu", "uploadHeaders": [], "files": files}}


def _view(variables: dict[str, Any], server: Server) -> dict[str, Any]:
    inserted = variables["name"] not in server.views
    server.views[variables["name"]] = variables
    return {"upsertView": {"view": {"id": "dmlldw==", "name": variables["name"]}, "inserted": inserted}}


def _find_view(variables: dict[str, Any], server: Server) -> dict[str, Any]:
    view = server.views.get(variables["viewName"])
    found = [] if view is None else [{"node": {**view, "id": "dmlldw=="}}]
    return {"project": {"allViews": {"edges": found}}}


def _make_sweep(variables: dict[str, Any], server: Server) -> dict[str, Any]:
    server.sweep = variables["config"]
    return {"upsertSweep": {"sweep": {"name": "abcd1234", "project": PROJECT}, "configValidationWarnings": []}}


def _heartbeat(variables: dict[str, Any], server: Server) -> dict[str, Any]:
    """The next run when none is at work, as the server of W&B with one agent."""
    commands: list[dict[str, Any]] = []
    if not json.loads(variables["runState"]):
        if server.queue:
            args = {key: {"value": value} for key, value in server.queue.pop(0).items()}
            number, program = len(server.queue), yaml.safe_load(server.sweep or "")["program"]
            commands = [{"type": "run", "run_id": f"agent{number}", "program": program, "args": args}]
        else:
            commands = [{"type": "exit"}]
    return {"agentHeartbeat": {"agent": {"id": "agent"}, "commands": json.dumps(commands)}}


def _find_sweep(variables: dict[str, Any], server: Server) -> dict[str, Any]:
    found = {"id": "cw==", "name": "abcd1234", "method": "grid", "state": "RUNNING", "config": server.sweep,
             "description": None, "createdAt": None, "heartbeatAt": None, "updatedAt": None, "controller": None,
             "earlyStopJobRunning": False, "bestLoss": None, "scheduler": None, "runs": {"edges": []}}  # fmt: skip
    return {"project": {"sweep": found}}


VIEWER = {"id": "u", "entity": "tester", "username": "tester", "flags": "{}", "teams": {"edges": []}}
# Part of a query -> its answer; the first that is in it.
ANSWERS: dict[str, Callable[[dict[str, Any], Server], dict[str, Any]]] = {
    "RunResumeStatus": _resume,
    "upsertBucket": _begin,
    "createArtifact(": _artifact,
    "query ArtifactType": lambda variables, server: {"project": {"artifact": None}},
    "createRunFiles": _files,
    "serverInfo": lambda variables, server: {
        "serverInfo": {"features": [], "cliVersionInfo": {}, "latestLocalVersionInfo": None}
    },
    "upsertView": _view,
    "allViews": _find_view,
    "upsertSweep": _make_sweep,
    "createAgent": lambda variables, server: {"createAgent": {"agent": {"id": "agent"}}},
    "agentHeartbeat": _heartbeat,
    "sweepName": _find_sweep,
    "viewer": lambda variables, server: {"viewer": VIEWER},
    "model": lambda variables, server: {"model": {"bucket": None, "id": "p", **PROJECT}},
}
