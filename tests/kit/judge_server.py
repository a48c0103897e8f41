"""A loopback server that speaks OpenAI's protocol as a judge, and misbehaves in the order it is told to."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Body = dict[str, Any]


def shown(body: Body) -> tuple[str, list[str]]:
    """(the prompt, the answers in the order shown) of a judge's request, read by its marks as a judge would."""
    system, user = body["messages"][0]["content"], body["messages"][1]["content"]
    found = re.search(r"carry the mark ([0-9a-f]{12})", system)
    assert found is not None
    mark = found[1]
    parts = re.findall(rf"\[{mark} ([^\n]*) begins\]\n(.*?)\n\[{mark} \1 ends\]", user, re.DOTALL)
    assert [name for name, _ in parts] in (["prompt", "answer"], ["prompt", "answer A", "answer B"])
    return parts[0][1], [text for _, text in parts[1:]]


def longer(body: Body) -> str:
    """An honest judge that prefers more words, and grades by them."""
    answers = [len(answer.split()) for answer in shown(body)[1]]
    if len(answers) == 1:
        grade = min(10, max(1, answers[0]))
        grades = {"helpfulness": grade, "harmlessness": 10, "instruction_following": grade, "tone": 5}
        return json.dumps({"reason": "counted words", **grades})
    preferred = "A" if answers[0] > answers[1] else "B" if answers[1] > answers[0] else "tie"
    return json.dumps({"reason": "counted words", "preferred": preferred})


class JudgeServer:
    """`faults` are served one a request before anything else: a code, (code, headers), or a function of the handler."""

    def __init__(self, judge: Callable[[Body], str] = longer) -> None:
        self.judge = judge
        self.faults: list[Any] = []
        self.requests: list[Body] = []
        self.times: list[float] = []
        self.tries = 0
        lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    server.tries += 1
                    server.times.append(time.monotonic())
                    fault = server.faults.pop(0) if server.faults else None
                if callable(fault):
                    fault(self)
                    return
                if fault is not None:
                    code, headers = fault if isinstance(fault, tuple) else (fault, {"retry-after-ms": "1"})
                    self.reply(json.dumps({"error": {"message": f"fault {code}"}}).encode(), code, headers)
                    return
                with lock:
                    server.requests.append(body | {"key": self.headers["Authorization"]})
                self.reply(completion(server.judge(body)))

            def reply(self, data: bytes, code: int = 200, headers: dict[str, str] | None = None) -> None:
                self.send_response(code)
                for name, value in ({"Content-Type": "application/json"} | (headers or {})).items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *args: object) -> None:
                return

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http.server_port}/v1"

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()


def completion(text: str | None, **message: Any) -> bytes:
    """A chat completion that says `text`: 100 tokens read, 10 written."""
    said = {"role": "assistant", "content": text, **message}
    reply = {
        "id": "x", "object": "chat.completion", "created": 0, "model": "m",
        "choices": [{"index": 0, "message": said, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110},
    }  # fmt: skip
    return json.dumps(reply).encode()


def says(data: bytes, content_type: str = "application/json") -> Callable[[Any], None]:
    """A fault: code 200 with these bytes."""
    return lambda handler: handler.reply(data, 200, {"Content-Type": content_type})


def cut(handler: Any) -> None:
    """A fault: the connection breaks in the middle of the reply."""
    handler.send_response(200)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", "5000")
    handler.end_headers()
    handler.wfile.write(completion("x")[:60])
    handler.wfile.flush()
    handler.connection.shutdown(2)


def endless(handler: Any) -> None:
    """A fault: a reply of any size, as much as is read."""
    handler.send_response(200)
    handler.send_header("Content-Type", "application/json")
    handler.end_headers()
    try:
        for _ in range(100_000):
            handler.wfile.write(b" " * 65536)
    except OSError:
        handler.close_connection = True


def drip(handler: Any) -> None:
    """A fault: a byte every now and then, for ever: no read ever times out."""
    handler.send_response(200)
    handler.send_header("Content-Type", "application/json")
    handler.end_headers()
    try:
        for _ in range(600):
            handler.wfile.write(b" ")
            handler.wfile.flush()
            time.sleep(0.05)
    except OSError:
        handler.close_connection = True


def silent(handler: Any) -> None:
    """A fault: nothing at all for a while."""
    time.sleep(2)
    handler.close_connection = True


def zipped(handler: Any) -> None:
    """A fault: a compressed reply that was not asked for; it could unpack to any size."""
    import gzip

    handler.reply(gzip.compress(completion("x")), 200, {"Content-Encoding": "gzip"})
