"""`dat export --push`: an adapter and its card, as a model repository of a hub. Private unless asked for otherwise."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from dat_ray.errors import DatError, InputError, error_line
from dat_ray.ops.secret_files import secret_by_name, secret_in_content
from dat_ray.progress import stage_line

OPTION = "--push"
TOKEN = "HF_TOKEN"
_REPO = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
# Weights are numbers; every other file of an export is read for secrets.
_WEIGHTS = ".safetensors"


def check_push(repo: str) -> None:
    """Looks at what a push needs before hours of work are done for it.

    Raises:
        InputError: no name of a repository, or no token in the environment.
    """
    if not _REPO.fullmatch(repo):
        raise InputError(OPTION, repo, "write ORG/NAME, made of letters, digits, dots, underscores and dashes")
    if not os.environ.get(TOKEN, "").strip():
        raise InputError(OPTION, repo, f"needs a token that may write: set {TOKEN} in the environment")


def push_folder(folder: Path, repo: str, *, public: bool) -> str:
    """Uploads a folder as one commit, after it has said what goes where.

    Args:
        folder: local; its files become the repository's, at the same relative paths.
        repo: ORG/NAME.
        public: whether a new repository may be seen by everybody.

    Returns:
        The address of the commit.

    Raises:
        InputError: as `check_push`; a file that looks like a secret; a repository that is public already, without `public`.
        DatError: the hub refuses, or cannot be reached.
    """
    check_push(repo)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for path in files:
        _refuse_secret(path, path.relative_to(folder).as_posix())
    listed = ", ".join(f"{path.relative_to(folder).as_posix()} ({_size(path.stat().st_size)})" for path in files)
    api = _api()
    seen = "everybody can see it" if public else "private"
    stage_line(f"push: to {api.endpoint}/{repo}, {seen}: {listed}")
    from huggingface_hub.errors import HfHubHTTPError

    try:
        api.create_repo(repo, repo_type="model", private=not public, exist_ok=True)
        if not public and not api.model_info(repo).private:
            raise InputError(OPTION, repo, "is there already, and everybody can see it: add --public, or name another")
        done = api.upload_folder(
            repo_id=repo, folder_path=str(folder), repo_type="model", commit_message="Adapter and card, written by dat export"
        )
    except DatError:
        raise
    # The library lets errors of its network stack through.
    except (HfHubHTTPError, OSError, ValueError, RuntimeError) as error:
        remedy = f"check the name, {TOKEN}'s rights and the network; nothing here was changed"
        raise DatError(f"{OPTION} {repo}: the hub did not take it ({error_line(error, 200)}): {remedy}") from error
    except Exception as error:
        if not type(error).__module__.startswith("httpx"):
            raise
        raise DatError(f"{OPTION} {repo}: the hub cannot be reached ({error_line(error, 200)}): check the network") from error
    return str(done.commit_url)


def _api() -> Any:
    from huggingface_hub import HfApi

    return HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None, token=os.environ[TOKEN].strip())


def _refuse_secret(path: Path, relative: str) -> None:
    if path.is_symlink():
        raise InputError(OPTION, relative, "is a symbolic link: nothing comes along from elsewhere, put the file itself there")
    what = secret_by_name(relative)
    if what is None and path.suffix != _WEIGHTS:
        what = secret_in_content(path.read_bytes(), path.name)
    if what is not None:
        raise InputError(OPTION, relative, f"looks like {what}: nothing was sent; take it out of the export")


def _size(count: int) -> str:
    return f"{count / 2**20:.1f} MiB" if count >= 1 << 20 else f"{count / 2**10:.1f} KiB"
