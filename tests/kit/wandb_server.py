"""A W&B server on loopback: enough of its GraphQL and file-stream API for a client to go online, or to suffer."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

PROJECT = {
    "id": "cHJvamVjdA==", "name": "check", "entity": {"name": "tester", "id": "e"}, "organization": None,
}  # fmt: skip


class Server(ThreadingHTTPServer):
    """`mode`: well, broken (answers 500), stall (accepts and says nothing), half (answers a probe, stalls on a run),
    refuse (answers a probe, and everything else with 403).

    What was sent is in `received`; `mode` may change while clients are connected.
    """

    daemon_threads = True

    def __init__(self, mode: str = "well") -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.mode = mode
        self.received: list[tuple[str, Any]] = []
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
            self._answer({"data": graphql(asked)})
        elif self.path.endswith("/file_stream"):
            self.server.received.append(("file_stream", json.loads(body)))
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


def graphql(asked: dict[str, Any]) -> dict[str, Any]:
    """The answer to one query, by what it asks for."""
    query, variables = asked["query"], asked.get("variables") or {}
    if "upsertBucket" in query:
        bucket = {
            "id": "cnVu", "name": variables.get("name"), "displayName": variables.get("displayName"),
            "description": None, "config": None, "sweepName": None, "historyLineCount": 0, "project": PROJECT,
        }  # fmt: skip
        return {"upsertBucket": {"bucket": bucket, "inserted": True}}
    if "createRunFiles" in query:
        files = [{"name": name, "uploadUrl": None} for name in variables.get("files", [])]
        return {"createRunFiles": {"runID": "cnVu", "uploadHeaders": [], "files": files}}
    if "serverInfo" in query:
        return {"serverInfo": {"features": [], "cliVersionInfo": {}, "latestLocalVersionInfo": None}}
    if "upsertView" in query:
        return {"upsertView": {"view": {"id": "dmlldw==", "name": variables["name"]}, "inserted": True}}
    if "viewer" in query:
        return {"viewer": {"id": "u", "entity": "tester", "username": "tester", "flags": "{}", "teams": {"edges": []}}}
    if "model" in query:
        return {"model": {"bucket": None, "id": "p", **PROJECT}}
    return {}
