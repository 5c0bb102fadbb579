"""A local server that speaks just enough of OpenAI's chat completions, with a script in place of a model."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

# What a script returns: text for an ordinary answer, (status, raw body), or seconds to hang before answering nothing useful.
Script = Callable[[dict[str, Any]], str | tuple[int, str] | float]


class Served:
    """Where the server listens, and what it was asked."""

    def __init__(self, url: str, asked: list[dict[str, Any]]) -> None:
        self.url, self.asked = url, asked


@contextmanager
def serve(script: Script) -> Iterator[Served]:
    """Serves on a free port of this machine for as long as the block lasts."""
    asked: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append(body | {"path": self.path, "authorization": self.headers.get("Authorization")})
            found = script(body)
            status = 200
            if isinstance(found, float):
                time.sleep(found)
                found = "too late"
            if isinstance(found, tuple):
                status, text = found
            else:
                text = json.dumps({"choices": [{"message": {"content": found}, "finish_reason": "stop"}]})
            payload = text.encode()
            try:
                self.send_response(status)
                self.send_header("Content-Length", str(len(payload)))
                self.end_headers()
                self.wfile.write(payload)
            except BrokenPipeError:
                pass  # the client did not wait

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield Served(f"http://127.0.0.1:{server.server_address[1]}/v1", asked)
    finally:
        server.shutdown()
        server.server_close()
