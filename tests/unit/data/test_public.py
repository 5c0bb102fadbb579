"""Public files by name, from a server on this machine: fetched once, checked, never half."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from dat_ray.config.loading import list_recipes, load_recipe
from dat_ray.data import public
from dat_ray.data.behaviors import load_behaviors
from dat_ray.data.public import FILES, PublicFile, public_file
from dat_ray.data.table_sources import open_source
from dat_ray.errors import InputError

NAME, CONTENT = "made/table.csv", b"goal,target\nDo it,Sure\n" * 5000


@contextmanager
def serving(handler: Callable[..., BaseHTTPRequestHandler]) -> Iterator[str]:
    """A file server on a free port of this machine."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def handler(cut_first: int = 0, body: bytes = CONTENT, status: int = 200) -> tuple[type[BaseHTTPRequestHandler], list[str]]:
    """Serves `body`, but breaks off the first `cut_first` answers half-way; and the paths that were asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: len(body) // 2] if len(asked) <= cut_first else body)

        def log_message(self, *_: object) -> None:
            pass

    return Handler, asked


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache of its own, and one more file that exists on our server only."""
    monkeypatch.setenv("DAT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("DAT_PUBLIC_DATA", raising=False)
    entry = PublicFile("http://127.0.0.1:9/made/table.csv", hashlib.sha256(CONTENT).hexdigest(), "CC0, nobody")
    monkeypatch.setitem(FILES, NAME, entry)


def kept(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "cache").rglob("*") if path.is_file())


def test_a_file_is_fetched_once_with_its_licence_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    serve, asked = handler()
    with serving(serve) as address:
        monkeypatch.setenv("DAT_PUBLIC_MIRROR", address + "/")
        path = public_file(f"public:{NAME}", "behaviors.path")
        assert path.read_bytes() == CONTENT
        assert open_source(f"public:{NAME}", "behaviors.path").columns == ("goal", "target")
    assert asked == [f"/{NAME}"]
    assert "license: CC0, nobody" in capsys.readouterr().err
    # The server is gone: the cache serves.
    assert public_file(f"public:{NAME}", "behaviors.path") == path
    assert kept(tmp_path) == ["table.csv"]


@pytest.mark.parametrize("cut", [1, 2])
def test_an_interrupted_download_starts_again(cut: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    serve, asked = handler(cut_first=cut)
    with serving(serve) as address:
        monkeypatch.setenv("DAT_PUBLIC_MIRROR", address)
        assert public_file(f"public:{NAME}", "f").read_bytes() == CONTENT
    assert len(asked) == cut + 1
    assert kept(tmp_path) == ["table.csv"]


def test_a_download_that_never_ends_whole_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    serve, asked = handler(cut_first=99)
    with serving(serve) as address:
        monkeypatch.setenv("DAT_PUBLIC_MIRROR", address)
        with pytest.raises(InputError, match=r"cut off after \d+ of \d+ bytes.*set DAT_PUBLIC_DATA=FOLDER"):
            public_file(f"public:{NAME}", "f")
    assert len(asked) == public.ATTEMPTS
    assert kept(tmp_path) == []


def test_other_bytes_are_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    serve, asked = handler(body=CONTENT + b"x")
    with serving(serve) as address:
        monkeypatch.setenv("DAT_PUBLIC_MIRROR", address)
        with pytest.raises(InputError, match="has other bytes than the published file"):
            public_file(f"public:{NAME}", "f")
    assert len(asked) == 1
    assert kept(tmp_path) == []


def test_a_damaged_cache_is_fetched_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    serve, asked = handler()
    with serving(serve) as address:
        monkeypatch.setenv("DAT_PUBLIC_MIRROR", address)
        path = public_file(f"public:{NAME}", "f")
        path.write_bytes(CONTENT[:100])
        assert public_file(f"public:{NAME}", "f").read_bytes() == CONTENT
    assert len(asked) == 2


def test_offline_the_missing_file_and_its_home_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Port 9 of this machine answers nobody.
    with pytest.raises(InputError) as caught:
        public_file(f"public:{NAME}", "behaviors.path")
    message = str(caught.value)
    assert f"behaviors.path = 'public:{NAME}'" in message
    assert f"download {FILES[NAME].url} by other means, put it at FOLDER/{NAME}" in message
    assert "\n" not in message
    monkeypatch.setenv("DAT_PUBLIC_DATA", str(tmp_path / "mine"))
    with pytest.raises(InputError, match=rf"mine/{NAME} is missing: put the file there, published at http"):
        public_file(f"public:{NAME}", "behaviors.path")
    place = tmp_path / "mine" / NAME
    place.parent.mkdir(parents=True)
    place.write_bytes(CONTENT[1:])
    with pytest.raises(InputError, match="is not the published file"):
        public_file(f"public:{NAME}", "behaviors.path")
    place.write_bytes(CONTENT)
    assert public_file(f"public:{NAME}", "behaviors.path") == place


def test_a_page_that_is_not_there_is_asked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    serve, asked = handler(status=404)
    with serving(serve) as address:
        monkeypatch.setenv("DAT_PUBLIC_MIRROR", address)
        with pytest.raises(InputError, match="HTTP Error 404"):
            public_file(f"public:{NAME}", "f")
    assert len(asked) == 1


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"choose one of public:harmbench/adv_training_behaviors.csv"):
        public_file("public:harmbench/other.csv", "behaviors.path")


def test_every_address_is_pinned_to_a_commit() -> None:
    for name, entry in FILES.items():
        if name != NAME:
            assert len(entry.url.split("/")[5]) == 40, entry.url
            assert len(entry.sha256) == 64


def test_paper_recipes_load_their_behaviors_from_a_mirror_of_the_public_files(
    public_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with serving(partial(Quiet, directory=str(public_data))) as address:
        monkeypatch.setenv("DAT_PUBLIC_MIRROR", address)
        for name in FILES:
            # What has been put beside the project; judges' prompts need not be.
            if (public_data / name).is_file():
                assert public_file(f"public:{name}", "f").read_bytes() == (public_data / name).read_bytes()
    # One set of behaviors serves all paper recipes; the mirror is gone by now.
    seen: dict[str, int] = {}
    for name in list_recipes():
        behaviors = load_recipe(name).behaviors
        if behaviors.path.startswith("public:") and behaviors.model_dump_json() not in seen:
            table = load_behaviors(behaviors).table
            seen[behaviors.model_dump_json()] = table.num_rows
            splits = table["split"].to_pylist()
            heldout = {one for one, split in zip(table["behavior_id"].to_pylist(), splits, strict=True) if split == "heldout"}
            assert (len(heldout), splits.count("over_refusal")) == (100, 250)
            # 100 behaviors of 12 targets, 11 of which are blank: each goal with each target is a row for CAT.
            assert splits.count("train") == 1189
    assert seen
