"""`dat export --push` against a hub that stands in on this machine: what is sent, to whom, and what is refused."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from dat_ray.errors import InputError
from dat_ray.ops.push import check_push, push_folder

TOKEN = "hf_" + "Q7" * 17


class Hub:
    """A hub's answers, and what it was asked: method, path, token, body."""

    def __init__(self, *, private: bool = True, status: int = 200) -> None:
        self.private, self.status = private, status
        self.asked: list[tuple[str, str, str | None, Any]] = []

    def answer(self, method: str, path: str, body: Any) -> tuple[int, Any]:
        if self.status != 200:
            return self.status, {"error": f"refused for {TOKEN}"}
        if path == "/api/repos/create":
            return 200, {"url": f"http://127.0.0.1/{body['organization']}/{body['name']}"}
        if path.endswith("/preupload/main"):
            return 200, {
                "files": [{"path": one["path"], "uploadMode": "regular", "shouldIgnore": False} for one in body["files"]]
            }
        if path.endswith("/commit/main"):
            return 200, {"success": True, "commitUrl": "http://127.0.0.1/o/n/commit/1", "commitOid": "1" * 40}
        if method == "GET" and path.startswith("/api/models/"):
            return 200, {"id": "o/n", "modelId": "o/n", "private": self.private, "sha": "1" * 40, "siblings": [], "tags": []}
        return 200, {}

    @contextmanager
    def serving(self) -> Iterator[str]:
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def _take(self) -> None:
                data = self.rfile.read(int(self.headers.get("content-length") or 0))
                path = self.path.partition("?")[0]
                lines = [json.loads(line) for line in data.splitlines() if line.strip()] if data else []
                body = lines if path.endswith("/commit/main") else lines[0] if lines else None
                hub.asked.append((self.command, path, self.headers.get("authorization"), body))
                status, content = hub.answer(self.command, path, body)
                answer = json.dumps(content).encode()
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            do_GET = do_POST = do_HEAD = _take

            def log_message(self, *_: Any) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "README.md").write_text("---\nlibrary_name: peft\n---\n# card\n")
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    (folder / "adapter_model.safetensors").write_bytes(bytes(range(256)) * 20)
    return folder


def pushed(folder: Path, url: str, *, public: bool = False, token: str | None = TOKEN) -> subprocess.CompletedProcess[str]:
    """In a process of its own: the hub's library reads its environment when it is imported."""
    code = (
        "import sys; from pathlib import Path; from dat_ray.errors import DatError\n"
        "from dat_ray.ops.push import push_folder\n"
        "try: print(push_folder(Path(sys.argv[1]), 'o/n', public=sys.argv[2] == 'True'))\n"
        "except DatError as error: print(error, file=sys.stderr); sys.exit(error.exit_code)\n"
    )
    names = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE")
    environment = {key: value for key, value in os.environ.items() if key not in names}
    environment |= {"HF_ENDPOINT": url, "HF_HOME": str(folder.parent / "home"), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    environment |= {"HF_TOKEN": token} if token else {}
    command = [sys.executable, "-c", code, str(folder), str(public)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def sent(hub: Hub) -> dict[str, bytes]:
    """Files of the one commit."""
    [commit] = [body for _, path, _, body in hub.asked if path.endswith("/commit/main")]
    files = [line["value"] for line in commit if line["key"] == "file"]
    return {one["path"]: base64.b64decode(one["content"]) for one in files}


def test_adapter_and_card_go_to_a_private_repository(adapter: Path) -> None:
    hub = Hub()
    with hub.serving() as url:
        done = pushed(adapter, url)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("http://127.0.0.1/o/n/commit/1")
    [created] = [body for _, path, _, body in hub.asked if path == "/api/repos/create"]
    assert (created["organization"], created["name"], created["visibility"]) == ("o", "n", "private")
    assert sent(hub) == {path.name: path.read_bytes() for path in adapter.iterdir()}
    assert {token for _, path, token, _ in hub.asked if path.startswith(("/api/models", "/api/repos"))} == {f"Bearer {TOKEN}"}
    # What goes where is said before, and the token never.
    assert "o/n, private: README.md (0.0 KiB), adapter_config.json (0.0 KiB), adapter_model.safetensors (5.0 KiB)" in done.stderr
    assert TOKEN not in done.stdout + done.stderr


def test_a_public_repository_only_where_it_is_asked_for(adapter: Path) -> None:
    hub = Hub(private=False)
    with hub.serving() as url:
        done = pushed(adapter, url)
        assert done.returncode == 2
        assert "everybody can see it: add --public" in done.stderr
        assert not any(path.endswith("/commit/main") for _, path, _, _ in hub.asked)
        done = pushed(adapter, url, public=True)
    assert done.returncode == 0, done.stderr
    assert "o/n, everybody can see it" in done.stderr


@pytest.mark.parametrize("status", [401, 403, 500])
def test_a_hub_that_refuses_is_one_line_without_the_token(adapter: Path, status: int) -> None:
    with Hub(status=status).serving() as url:
        done = pushed(adapter, url)
    assert done.returncode == 1
    assert "--push o/n: the hub did not take it" in done.stderr
    assert "Traceback" not in done.stderr
    assert TOKEN not in done.stdout + done.stderr


def test_a_hub_that_is_not_there_is_one_line(adapter: Path) -> None:
    done = pushed(adapter, "http://127.0.0.1:9")
    assert done.returncode == 1
    assert "--push o/n: the hub" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        (".env", "A=1", "variables of an environment"),
        ("notes.md", "-----BEGIN PRIVATE " + "KEY-----", "a private key"),
        ("card.md", f"see {TOKEN}", "an access token"),
        ("card.md", "the word is open-sesame-1234", "the value of MY_PASSWORD"),
    ],
)
def test_what_looks_like_a_secret_is_not_sent(
    adapter: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: str, what: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    monkeypatch.setenv("MY_PASSWORD", "open-sesame-1234")
    (adapter / name).write_text(content)
    with pytest.raises(InputError, match=f"looks like {what}: nothing was sent") as caught:
        push_folder(adapter, "o/n", public=False)
    assert TOKEN not in str(caught.value)


def test_a_link_is_not_followed(adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    (tmp_path / "elsewhere").write_text("x")
    (adapter / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="is a symbolic link"):
        push_folder(adapter, "o/n", public=False)


def test_name_and_token_are_asked_for_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    for name in ("n", "o/n/m", "../n", "o/", "https://hub/o/n"):
        with pytest.raises(InputError, match="write ORG/NAME"):
            check_push(name)
    with pytest.raises(InputError, match="set HF_TOKEN in the environment"):
        check_push("o/n")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    check_push("o/n")
