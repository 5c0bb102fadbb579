"""What can be known in a moment before Ray and engines start: whether a cluster answers, and what can be written."""

from __future__ import annotations

import os
import socket
import tempfile
from pathlib import Path
from urllib.parse import urlsplit

from dat_ray.errors import DatError, InputError

# Seconds for a connection, and for the first bytes behind it. A live cluster takes milliseconds.
SECONDS_TO_ANSWER = 10.0
# What every HTTP/2 client says first, and an empty frame of settings: Ray's servers speak gRPC.
_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
_SETTINGS = 4
# Bytes of a socket's path that Linux takes, the closing zero not counted.
LONGEST_SOCKET_PATH = 107
# The longest socket that Ray makes below its temporary folder; ids of processes have up to seven digits.
_SOCKET = "ray/session_2026-01-01_00-00-00_000000_1234567/sockets/plasma_store"


def check_address(address: str) -> None:
    """Checks that a cluster of Ray answers where `RAY_ADDRESS` says.

    Args:
        address: `host:port` of a cluster's GCS, `ray://host:port` of a Ray client's server, or `auto`.

    Raises:
        DatError: nothing listens there, it says nothing, or it speaks another protocol.
    """
    if address.startswith(("http://", "https://")):
        raise bad_address(address, "a dashboard, which takes jobs alone: `dat submit` sends one")
    if address == "auto":
        from ray._private.services import canonicalize_bootstrap_address

        try:
            found = canonicalize_bootstrap_address(address)
        except (ConnectionError, ValueError, OSError) as error:
            raise bad_address(address, f"no cluster is known on this machine: {error}") from error
        if found is None:
            raise bad_address(address, "no cluster is known on this machine")
        answers(found, address)
    elif "://" not in address or address.startswith("ray://"):
        answers(address.removeprefix("ray://"), address)


def answers(place: str, address: str) -> None:
    """Opens a connection and waits for the first bytes; see `check_address`."""
    try:
        parts = urlsplit(f"//{place}")
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise bad_address(address, str(error)) from error
    if not host or port is None:
        raise bad_address(address, "not of the form host:port")
    try:
        with socket.create_connection((host, port), timeout=SECONDS_TO_ANSWER) as connection:
            if os.environ.get("RAY_USE_TLS", "0") not in ("", "0"):
                return  # it waits for a handshake with certificates, which are Ray's to make
            connection.sendall(_HELLO)
            first = _receive(connection, 9)
    except OSError as error:
        raise bad_address(address, f"{type(error).__name__}: {error}") from error
    if len(first) < 9 or first[3] != _SETTINGS:
        raise bad_address(address, "what listens there is no server of Ray's")


def _receive(connection: socket.socket, count: int) -> bytes:
    found = b""
    while len(found) < count:
        part = connection.recv(count - len(found))
        if not part:
            break
        found += part
    return found


def bad_address(address: str, reason: str) -> DatError:
    """An address that leads nowhere, in one line."""
    said = " ".join(reason.split())[:200]
    return DatError(
        f"RAY_ADDRESS={address} does not lead to a cluster ({said}): fix it, or unset it to start Ray on this machine"
    )


def check_ray_folder() -> None:
    """Checks that Ray can put its sockets below its temporary folder.

    Raises:
        InputError: the folder's path is too long, or nothing can be written there.
    """
    variable = next((name for name in ("RAY_TMPDIR", "TMPDIR") if name in os.environ), None)
    folder = os.environ[variable] if variable else "/tmp"
    longest = LONGEST_SOCKET_PATH - len(os.fsencode(os.path.join("/", _SOCKET)))
    length = len(os.fsencode(folder.rstrip("/")))
    if length > longest:
        remedy = (
            f"its {length} bytes leave no room for the paths of Ray's sockets: set RAY_TMPDIR to a folder of at most {longest}"
        )
        raise InputError(variable or "RAY_TMPDIR", folder, remedy)
    check_writable(variable or "RAY_TMPDIR", folder, "set RAY_TMPDIR to a folder that can be")


def check_writable(field: str, folder: str | Path, remedy: str) -> None:
    """Checks that files can be made in a folder, or in the nearest folder above it that is there. URIs pass.

    Nothing is left behind, and a folder that is not there is not made.

    Args:
        field: option or variable that names the folder.
        folder: local path, or a URI.
        remedy: what to do, in the imperative.

    Raises:
        InputError: it is a file, or cannot be written.
    """
    if "://" in str(folder):
        return
    place = Path(folder).expanduser().absolute()
    while not place.exists() and not place.is_symlink() and place != place.parent:
        place = place.parent
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise InputError(field, str(folder), f"{place} cannot be written ({reason}): {remedy}") from error


def check_places(field: str, folder: str) -> None:
    """Checks what a command will write: its own folder, and the temporary folder of this machine.

    Raises:
        InputError: one of them cannot be written.
    """
    check_writable(field, folder, "choose another folder, or change its permissions")
    try:
        tempfile.gettempdir()
    except FileNotFoundError as error:
        remedy = "no temporary folder can be written on this machine: set TMPDIR to one that can"
        raise InputError("TMPDIR", os.environ.get("TMPDIR"), remedy) from error
