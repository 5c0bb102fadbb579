"""What goes along with a job: a zip file of exactly the files that were listed, without secrets and without what lies elsewhere.

By default those that git tracks, as they are in the working tree. Ray uploads a zip file as it is, so that none of its own rules
about what to leave out takes part.
"""

from __future__ import annotations

import hashlib
import os
import stat
import subprocess
import time
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from ray._private.runtime_env import packaging

from dat_ray.cache import cache_root
from dat_ray.errors import InputError
from dat_ray.ops.secret_files import secret_by_name, secret_in_content

OPTION = "--working-dir"
LARGEST_NAMED = 5
NAMED_AT_MOST = 8
SECONDS_KEPT = 7 * 24 * 3600.0
# The same bytes give the same package, whenever it was made.
_EPOCH = (1980, 1, 1, 0, 0, 0)
_LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\n"
_GITLINK, _SYMLINK = "160000", "120000"
# Variables by which another repository than the folder's could be meant.
_GIT_ENVIRONMENT = "GIT_"


@dataclass(frozen=True)
class PackageFiles:
    """The files that are to go along.

    Attributes:
        root: the folder, without symbolic links in its own path.
        files: relative path in the package -> path that is read.
        source: who chose them, for a line: git or `--include`.
        notes: what was left out though it was named, and why.
    """

    root: Path
    files: dict[str, Path]
    source: str
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Package:
    """A packed listing.

    Attributes:
        path: the zip file, named by its content.
        bytes: its size.
        sizes: relative path -> bytes, of every file in it.
        pointers: those that are git-lfs pointers, whose content stands elsewhere.
    """

    path: str
    bytes: int
    sizes: dict[str, int]
    pointers: tuple[str, ...]

    def summary(self) -> str:
        """Count, size and the largest, in a line."""
        return f"{len(self.sizes)} files, {_mib(self.bytes)}; the largest: {_largest(self.sizes)}"


def upload_limit() -> int:
    """Bytes that Ray's head takes at once."""
    return int(packaging.GCS_STORAGE_MAX_SIZE)


def list_files(folder: str, named: Sequence[str] = (), include: Sequence[str] = (), exclude: Sequence[str] = ()) -> PackageFiles:
    """Chooses the files of a folder that go along.

    Args:
        folder: becomes the job's working directory.
        named: files of it that the command line names, tracked or not.
        include: paths, folders or patterns below it that go along besides what git tracks; without git, all there is.
        exclude: the same, of what stays here.

    Raises:
        InputError: no such folder, no git and no `include`, a pattern without a file, or a link that leads out of the folder.
    """
    root = Path(os.path.realpath(folder))
    if not root.is_dir():
        raise InputError(OPTION, folder, "no such folder: give the one that holds the recipe")
    tracked = _tracked(root)
    if tracked is None and not include:
        remedy = "git does not say what goes along: no repository, or no git here. Name it with --include, as in --include jobs"
        raise InputError(OPTION, folder, f"{remedy} --include 'data/*.csv', or make it a repository (git init, git add)")
    modes = {} if tracked is None else tracked
    notes = [f"{path} is a submodule that is not checked out" for path, mode in modes.items() if mode == _GITLINK]
    wanted = [path for path, mode in modes.items() if mode != _GITLINK]
    for pattern in include:
        wanted += _matching(root, pattern, "--include")
    wanted += named
    wanted = [path for path in dict.fromkeys(wanted) if not any(_matches(path, pattern) for pattern in exclude)]
    files, left = _without_links(root, wanted)
    if not files:
        raise InputError(OPTION, folder, "holds no file that git tracks: add them (git add), or name them with --include")
    source = "--include" if tracked is None else "git" + (" and --include" if include else "")
    return PackageFiles(root, dict(sorted(files.items())), source, (*notes, *left))


def _tracked(root: Path) -> dict[str, str] | None:
    """Relative path -> git's mode of every file below the folder that git tracks, in submodules too; None without git."""
    command = ["git", "-c", "core.fsmonitor=false", "-C", str(root), "ls-files", "--stage", "-z", "--recurse-submodules"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(_GIT_ENVIRONMENT)}
    try:
        done = subprocess.run(command, capture_output=True, check=False, env=environment | {"LC_ALL": "C"})
    except FileNotFoundError:
        return None
    if done.returncode:
        reason = " ".join(done.stderr.decode(errors="replace").split())
        if "not a git repository" in reason:
            return None
        raise InputError(OPTION, str(root), f"git cannot say what it tracks there ({reason[:200]}): fix that, or copy the folder")
    entries = (entry.partition("\t") for entry in os.fsdecode(done.stdout).split("\0") if entry)
    found = {path: facts.split()[0] for facts, _, path in entries}
    # A file that is tracked and deleted stays away; its link may lead nowhere and is still there.
    return {path: mode for path, mode in found.items() if mode == _GITLINK or os.path.lexists(root / path)}


def _matching(root: Path, pattern: str, option: str) -> list[str]:
    """Files below the folder that a path, a folder or a pattern names; symbolic links to folders are not followed."""
    found = [path for path in _below(root) if _matches(path, pattern)]
    if not found:
        raise InputError(option, pattern, f"names no file of {root}: give a path, a folder or a pattern below it")
    return found


def _below(root: Path) -> Iterator[str]:
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if name != ".git")
        links = [name for name in folders if os.path.islink(os.path.join(folder, name))]
        for name in sorted([*files, *links]):
            yield os.path.relpath(os.path.join(folder, name), root)


def _matches(path: str, pattern: str) -> bool:
    wanted = os.path.normpath(pattern)
    return wanted == "." or path == wanted or path.startswith(f"{wanted}/") or fnmatch(path, wanted)


def _without_links(root: Path, paths: Sequence[str]) -> tuple[dict[str, Path], list[str]]:
    """What stands behind each path, and notes of what was left out.

    A link to a file of the list is that file once more, a link to a folder the listed files in it. What a link leads to
    inside the folder is not in the list by that alone.
    """
    notes: list[str] = []
    plain: dict[str, Path] = {}
    links: dict[str, Path] = {}
    for path in paths:
        real = Path(os.path.realpath(root / path))
        if not real.is_relative_to(root):
            raise InputError(OPTION, path, f"leads out of {root}, by a symbolic link: put the file there, or --exclude it")
        if real != root / path:
            links[path] = real
        elif stat.S_ISREG(os.lstat(real).st_mode):
            plain[path] = real
        else:
            notes.append(f"{path} is no file")
    listed = {real: path for path, real in plain.items()}
    files = dict(plain)
    for path, real in links.items():
        if real in listed:
            files[path] = real
        elif real.is_dir() and not (root / path).is_relative_to(real):
            files |= {f"{path}/{inner.relative_to(real)}": inner for inner in listed if inner.is_relative_to(real)}
        else:
            notes.append(f"{path} is a link to what does not go along")
    return files, notes


def pack(listing: PackageFiles) -> Package:
    """Packs a listing. Each file is read once: what is looked through for secrets is what is packed.

    Raises:
        InputError: files that look like a secret, or too large for Ray's head; names them.
    """
    sizes = {name: path.stat().st_size for name, path in listing.files.items()}
    # Before they are zipped: packing gigabytes only to refuse them takes minutes. Text shrinks four times at most.
    if sum(sizes.values()) >= 4 * upload_limit():
        raise _too_large(listing, sum(sizes.values()), sizes)
    folder = cache_root() / "packages"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    _forget_old(folder)
    partial = folder / f".{os.getpid()}.partial"
    secrets, sizes, pointers = {}, {}, []
    try:
        with os.fdopen(os.open(partial, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600), "w+b") as stream:
            with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
                for name, path in listing.files.items():
                    data = path.read_bytes()
                    sizes[name] = len(data)
                    behind = str(path.relative_to(listing.root))
                    what = secret_by_name(name) or secret_by_name(behind) or secret_in_content(data, path.name)
                    if what is not None:
                        secrets[name] = what
                    elif data.startswith(_LFS_POINTER):
                        pointers.append(name)
                    entry = zipfile.ZipInfo(name, _EPOCH)
                    runs = path.stat().st_mode & stat.S_IXUSR
                    entry.external_attr = (stat.S_IFREG | (0o755 if runs else 0o644)) << 16
                    entry.compress_type = zipfile.ZIP_DEFLATED
                    archive.writestr(entry, data)
            stream.seek(0)
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        if secrets:
            raise _secrets(listing, secrets)
        packed = partial.stat().st_size
        if packed >= upload_limit():
            raise _too_large(listing, packed, sizes)
        place = folder / f"dat-{digest[:16]}.zip"
        os.replace(partial, place)
    finally:
        partial.unlink(missing_ok=True)
    return Package(str(place), packed, sizes, tuple(pointers))


def _forget_old(folder: Path) -> None:
    for path in folder.glob("dat-*.zip"):
        if time.time() - path.stat().st_mtime > SECONDS_KEPT:
            path.unlink(missing_ok=True)


def _secrets(listing: PackageFiles, secrets: dict[str, str]) -> InputError:
    named = ", ".join(f"{name!r} ({what})" for name, what in list(secrets.items())[:NAMED_AT_MOST])
    more = len(secrets) - NAMED_AT_MOST
    listed = named + (f" and {more} more" if more > 0 else "")
    remedy = "whoever uses the cluster could read that: move it out of the folder, or leave it here with --exclude"
    return InputError(OPTION, str(listing.root), f"holds what looks like a secret, {listed}: {remedy}")


def _too_large(listing: PackageFiles, size: int, sizes: dict[str, int]) -> InputError:
    return InputError(
        OPTION,
        str(listing.root),
        f"{size / 2**20:.0f} MiB, Ray's head takes {upload_limit() / 2**20:.0f}; the largest: {_largest(sizes)}: leave them out "
        "with --exclude, put data on the shared storage, or give a smaller folder",
    )


def _largest(sizes: dict[str, int]) -> str:
    found = sorted(sizes.items(), key=lambda item: -item[1])[:LARGEST_NAMED]
    return ", ".join(f"{name} ({_mib(size)})" for name, size in found)


def _mib(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"
