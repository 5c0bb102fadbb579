"""Noes that come in a moment: addresses without a cluster, folders that cannot be written, paths too long for a socket."""

from __future__ import annotations

import shutil
import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dat_ray import cache, cli, preflight, raysession
from dat_ray.config.cluster import ClusterConfig
from dat_ray.errors import DatError, InputError
from dat_ray.ops.doctor import diagnose
from dat_ray.preflight import check_address, check_places, check_ray_folder, check_writable
from dat_ray.raysession import start_ray

SETTINGS = bytes([0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 100])


@contextmanager
def listening(answer: bytes | None, *, accept: bool = True) -> Iterator[str]:
    """A port that sends these bytes to whoever connects; None: it closes at once; not accepting: nobody takes the call."""
    server = socket.create_server(("127.0.0.1", 0))
    kept: list[socket.socket] = []

    def serve() -> None:
        try:
            while True:
                connection = server.accept()[0]
                kept.append(connection)
                if answer is None:
                    connection.close()
                else:
                    connection.sendall(answer)
        except OSError:
            pass

    thread = threading.Thread(target=serve, daemon=True)
    if accept:
        thread.start()
    try:
        yield f"127.0.0.1:{server.getsockname()[1]}"
    finally:
        server.shutdown(socket.SHUT_RDWR)
        server.close()
        for connection in kept:
            connection.close()


def dead_port() -> str:
    with listening(b"") as address:
        return address


def test_what_speaks_as_a_cluster_does_is_let_through() -> None:
    with listening(SETTINGS) as address:
        check_address(address)
        check_address(f"ray://{address}")
    check_address("somebodys-own://cluster")


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("{dead}", "ConnectionRefusedError"),
        ("ray://{dead}", "ConnectionRefusedError"),
        ("http://127.0.0.1:8265", "dashboard"),
        ("127.0.0.1", "host:port"),
        ("ray://head", "host:port"),
        ("head:port", "host:port|cast"),
        ("no-such-host.invalid:6379", "gaierror"),
    ],
)
def test_an_address_without_a_cluster_is_one_line(address: str, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    address = address.format(dead=dead_port())
    monkeypatch.setenv("RAY_ADDRESS", address)
    # Other tests of this process may have a session, which would be taken as it is.
    monkeypatch.setattr(raysession.ray, "is_initialized", lambda: False)
    line = f"^RAY_ADDRESS={address} does not lead to a cluster .*({reason}).*unset it"
    with pytest.raises(DatError, match=line) as failed, start_ray(ClusterConfig()):
        raise AssertionError("there is no cluster")
    assert failed.value.exit_code == 1
    assert "\n" not in str(failed.value)


@pytest.mark.parametrize("answer", [None, b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"SSH-2.0-x\r\n"])
def test_a_port_of_something_else_is_told_apart(answer: bytes | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "SECONDS_TO_ANSWER", 0.2)
    with listening(answer) as address, pytest.raises(DatError, match=r"TimeoutError|no server of Ray's|ConnectionReset"):
        check_address(address)
    with listening(b"", accept=False) as address, pytest.raises(DatError, match="TimeoutError"):
        check_address(address)


def test_auto_without_a_cluster_or_with_one_that_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray._private import services

    def none_known(address: str) -> str:
        raise ConnectionError("Could not find any running Ray instance.")

    monkeypatch.setattr(services, "canonicalize_bootstrap_address", none_known)
    with pytest.raises(DatError, match=r"^RAY_ADDRESS=auto .*no cluster is known on this machine"):
        check_address("auto")
    gone = dead_port()
    monkeypatch.setattr(services, "canonicalize_bootstrap_address", lambda address: gone)
    with pytest.raises(DatError, match=r"^RAY_ADDRESS=auto .*ConnectionRefusedError"):
        check_address("auto")


def test_the_longest_temporary_folder_is_that_in_which_sockets_can_be_made(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    longest = preflight.LONGEST_SOCKET_PATH - len(preflight._SOCKET) - 1
    base = Path(tempfile.mkdtemp(prefix=""))
    request.addfinalizer(lambda: shutil.rmtree(base))
    if len(str(base)) > longest - 2:
        pytest.skip(f"{base} is too long itself")
    fits = base / ("x" * (longest - len(str(base)) - 1))
    too_long = Path(f"{fits}x")
    for folder, works in ((fits, True), (too_long, False)):
        (folder / preflight._SOCKET).parent.mkdir(parents=True)
        monkeypatch.setenv("RAY_TMPDIR", str(folder))
        with socket.socket(socket.AF_UNIX) as probe:
            if works:
                probe.bind(str(folder / preflight._SOCKET))
                check_ray_folder()
            else:
                with pytest.raises(OSError, match="too long"):
                    probe.bind(str(folder / preflight._SOCKET))
                with pytest.raises(InputError, match=rf"^RAY_TMPDIR = .*at most {longest}$"):
                    check_ray_folder()
    monkeypatch.delenv("RAY_TMPDIR")
    monkeypatch.setenv("TMPDIR", "/" + "é" * 62)
    with pytest.raises(InputError, match=r"^TMPDIR = .*its 125 bytes"):
        check_ray_folder()
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    failed = {check.name: check.detail for check in diagnose(None) if not check.ok}
    assert "its 125 bytes" in failed["places"]


@pytest.fixture
def read_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which nothing can be made, also where the tests run as root."""
    folder = tmp_path / "locked"
    folder.mkdir()
    made = preflight.tempfile.TemporaryFile

    def refuse(*arguments: object, dir: Path, **options: object) -> object:
        if Path(dir) == folder:
            raise PermissionError(13, "Permission denied")
        return made(dir=dir)

    monkeypatch.setattr(preflight.tempfile, "TemporaryFile", refuse)
    return folder


def test_folders_that_cannot_be_written_are_named_with_a_remedy(read_only: Path, tmp_path: Path) -> None:
    check_writable("--out", tmp_path / "new" / "deeper", "x")
    assert not (tmp_path / "new").exists(), "a check makes nothing"
    check_writable("--out", "s3://bucket/run", "x")
    with pytest.raises(InputError, match=rf"^--out = .*: {read_only} cannot be written \(Permission denied\): choose"):
        check_places("--out", str(read_only / "a" / "b"))
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(InputError, match="Not a directory"):
        check_places("--out", str(file / "run"))
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    with pytest.raises(InputError, match="cannot be written"):
        check_places("--out", str(tmp_path / "dangling" / "run"))


@pytest.mark.parametrize(
    "command",
    [
        ["run", "demo", "--run-dir={}/r"],
        ["generate", "demo", "--run-dir={}/r"],
        ["adapt", "embedded:smollm2-135m-instruct", "--out={}/s"],
        ["sweep", "demo", "--grid", "seed=1,2", "--sweep-dir={}/w"],
    ],
)
def test_a_command_says_so_before_it_reads_a_model(
    command: list[str], read_only: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def too_late(*_: object) -> None:
        raise AssertionError("a model was looked at first")

    from dat_ray.pipeline import stages

    monkeypatch.setattr(stages, "check_models", too_late)
    assert cli.main([part.format(read_only) for part in command]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1
    assert "cannot be written (Permission denied)" in said[0]


def test_a_cache_that_cannot_be_written_is_named_where_it_is_needed(read_only: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    from dat_ray.models.folders import build_once

    monkeypatch.setenv("DAT_CACHE", str(read_only))
    with pytest.raises(InputError, match=r"^DAT_CACHE = .*set DAT_CACHE"):
        build_once(read_only / "models" / "x", {}, lambda folder: None)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(read_only / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda model, file: None)
    with pytest.raises(InputError, match=r"^HF_HOME = .*give a folder that holds owner/model"):
        cache.check_hub_cache("owner/model")
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda model, file: "/a/config.json")
    cache.check_hub_cache("owner/model")


def test_no_temporary_folder_at_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def none() -> str:
        raise FileNotFoundError(2, "No usable temporary directory found in ['/x']")

    monkeypatch.setattr(preflight.tempfile, "gettempdir", none)
    with pytest.raises(InputError, match=r"^TMPDIR = .*set TMPDIR to one that can"):
        check_places("--run-dir", str(tmp_path))
