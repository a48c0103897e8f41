"""A hub on the loopback: what the real client asks of one to read cards and to push a model."""

from __future__ import annotations

import base64
import contextlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Hub(BaseHTTPRequestHandler):
    """What a push asks of a hub: make a repository, where each file goes, a large file's upload, one commit."""

    got: dict[str, Any]

    def do_GET(self) -> None:
        card = self.got["cards"].get(self.path.partition("?")[0])
        if card is None:
            return self._answer({"error": "not found"}, 404)
        self._answer({"id": "x/y", "cardData": card})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.got["authorized"].add(self.headers.get("Authorization"))
        base = f"http://127.0.0.1:{self.server.server_address[1]}"
        if self.path == "/api/repos/create":
            self.got["created"] = json.loads(body)
            return self._answer({"url": f"{base}/org/name", "id": "org/name"})
        if self.path == "/api/validate-yaml":
            return self._answer({"errors": [], "warnings": []})
        if self.path.endswith("/preupload/main"):
            files = json.loads(body)["files"]
            modes = [
                {
                    "path": f["path"],
                    "uploadMode": "lfs" if f["path"].endswith("tensors") else "regular",
                    "shouldIgnore": False,
                }
                for f in files
            ]
            return self._answer({"files": modes})
        if self.path.endswith("/info/lfs/objects/batch"):
            objects = json.loads(body)["objects"]
            # What is there already is not asked for again, as on the real one.
            answer = [
                o if o["oid"] in self.got["lfs"] else {**o, "actions": {"upload": {"href": f"{base}/lfs/{o['oid']}"}}}
                for o in objects
            ]
            return self._answer({"transfer": "basic", "objects": answer})
        if "/commit/main" in self.path:
            if self.got["cut"] == "commit":
                return self.connection.close()
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.got["files"][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                elif line["key"] == "lfsFile":
                    self.got["files"][line["value"]["path"]] = self.got["lfs"][line["value"]["oid"]]
            return self._answer(
                {"commitUrl": f"{base}/org/name/commit/abc", "commitOid": "abc", "pullRequestUrl": None}
            )
        return self._answer({"error": "not found"}, 404)

    def do_PUT(self) -> None:
        self.got["puts"].append(self.path)
        if self.got["cut"] == "upload":
            self.got["waiting"].set()
            self.got["go_on"].wait(60)
            return self.connection.close()
        self.got["lfs"][self.path.rpartition("/")[2]] = self.rfile.read(int(self.headers["Content-Length"]))
        self._answer({})

    def _answer(self, data: Any, status: int = 200) -> None:
        body = json.dumps(data).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        pass


@contextlib.contextmanager
def serving() -> Iterator[tuple[str, dict[str, Any]]]:
    """(its address, what it got); `cut` makes it break off at the upload of a large file or at the commit."""
    got: dict[str, Any] = {"files": {}, "lfs": {}, "authorized": set(), "cards": {}, "puts": [], "cut": None}
    got |= {"waiting": threading.Event(), "go_on": threading.Event()}
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Hub,), {"got": got}))
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", got
    finally:
        got["go_on"].set()
        server.shutdown()
