"""A local server that speaks just enough of OpenAI's chat completions, with a script in place of a model."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Reply:
    """A whole reply, or one that comes bit by bit.

    Attributes:
        body: text, or the bytes that are sent one after another, `pause` seconds apart.
        status, headers: of the reply.
        raw: the parts of `body` hold status line and headers themselves.
    """

    body: str | tuple[bytes, ...]
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    pause: float = 0.0
    raw: bool = False


# What a script returns: text for an ordinary answer, (status, raw body), a reply in all detail, or None to hang.
Script = Callable[[dict[str, Any]], str | tuple[int, str] | Reply | None]


class Served:
    """Where the server listens, and what it was asked."""

    def __init__(self, url: str, asked: list[dict[str, Any]]) -> None:
        self.url, self.asked = url, asked


@contextmanager
def serve(script: Script) -> Iterator[Served]:
    """Serves on a free port of this machine for as long as the block lasts."""
    asked: list[dict[str, Any]] = []
    over = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append(body | {"path": self.path, "authorization": self.headers.get("Authorization")})
            found = script(body)
            status, text = 200, ""
            if found is None:
                over.wait()
                found = "too late"
            if isinstance(found, tuple):
                status, text = found
            elif isinstance(found, str):
                text = json.dumps({"choices": [{"message": {"content": found}, "finish_reason": "stop"}]})
            with suppress(BrokenPipeError, ConnectionResetError):  # the client did not wait
                self._send(found if isinstance(found, Reply) else Reply(text, status))

        def _send(self, reply: Reply) -> None:
            parts = (reply.body.encode(),) if isinstance(reply.body, str) else reply.body
            if not reply.raw:
                self.send_response_only(reply.status)  # without a date of its own
                for name, value in reply.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(sum(map(len, parts))))
                self.end_headers()
            for part in parts:
                time.sleep(reply.pause)
                self.wfile.write(part)
                self.wfile.flush()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield Served(f"http://127.0.0.1:{server.server_address[1]}/v1", asked)
    finally:
        over.set()
        server.shutdown()
        server.server_close()
