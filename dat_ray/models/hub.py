"""Models on the hub: which commit a name stands for, their files in the hub's cache, and one line for whatever the hub answers.

A token is read by huggingface_hub itself, from its own variable or file; nothing here sees it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from dat_ray.cache import check_hub_cache
from dat_ray.errors import InputError, error_line

# What describes a model, without its weights: configurations, tokenizers, templates.
DESCRIPTION = ("*.json", "*.txt", "*.jinja", "*.model")
WEIGHTS = (*DESCRIPTION, "*.safetensors")
MAIN = "main"
# Behind an adapter's own revision stands that of its base.
_BASE_SIGN = "+"
SECONDS_FOR_THE_HUB = 15.0


class OutOfReach(InputError):
    """A hub model that is there, as far as anybody knows, and that this account or this machine cannot have now."""


class Revision(NamedTuple):
    """Of a model, and of the base that it adapts where it is an adapter."""

    own: str
    base: str

    @classmethod
    def read(cls, text: str) -> Revision:
        """Takes `REVISION` or `REVISION+REVISION OF THE BASE` apart; what is left out is `main`."""
        own, _, base = text.partition(_BASE_SIGN)
        return cls(own or MAIN, base or MAIN)

    def __str__(self) -> str:
        return self.own if self.base == MAIN else f"{self.own}{_BASE_SIGN}{self.base}"


def with_revision(spec: str, revision: str) -> str:
    """A model's name and revision in one text, `NAME@REVISION`."""
    return spec if revision == MAIN else f"{spec}@{revision}"


def split_revision(text: str) -> tuple[str, str]:
    """Name and revision of `NAME@REVISION`; a folder's name may hold that sign itself."""
    if "@" not in text or Path(text).expanduser().is_dir():
        return text, MAIN
    spec, _, revision = text.rpartition("@")
    return spec, revision or MAIN


def hub_id_of(folder: str) -> str | None:
    """The hub id of a snapshot in the hub's cache; None of any other folder."""
    path = Path(folder)
    if path.parent.name != "snapshots" or not path.parent.parent.name.startswith("models--"):
        return None
    return path.parent.parent.name.removeprefix("models--").replace("--", "/")


def hub_folder(hub_id: str, revision: str, field: str, patterns: tuple[str, ...] = WEIGHTS, *, download: bool = True) -> Path:
    """A hub model's files in the cache of this machine, those that are missing downloaded.

    Args:
        hub_id: OWNER/NAME, or NAME.
        revision: branch, tag or commit.
        field: recipe field to name in an error.
        patterns: of the files' names.
        download: whether what is missing may be fetched; else the model must have been loaded on this machine.

    Raises:
        OutOfReach: a license that this account has not accepted, or a hub out of reach.
        InputError: no such model or revision, or a cache that cannot be written.
    """
    from huggingface_hub import snapshot_download

    if download:
        check_hub_cache(hub_id)
    with hub_errors_named(hub_id, revision, field):
        return Path(snapshot_download(hub_id, revision=revision, allow_patterns=list(patterns), local_files_only=not download))


class HubListing(NamedTuple):
    """What a hub says of one commit of a model.

    Attributes:
        sizes: file name -> bytes.
        license: as its page states it, and whether this account had to accept it.
    """

    sizes: dict[str, int]
    license: str


def hub_listing(hub_id: str, revision: str, field: str) -> HubListing:
    """Asks a hub for a model's files and license; nothing is downloaded.

    Raises:
        InputError: as `hub_folder`, and where the license of a gated model has not been accepted.
    """
    from huggingface_hub import HfApi

    with hub_errors_named(hub_id, revision, field):
        info = HfApi().model_info(hub_id, revision=revision, timeout=SECONDS_FOR_THE_HUB, files_metadata=True)
        if info.gated:
            HfApi().auth_check(hub_id)
    stated = (info.card_data.to_dict() if info.card_data else {}).get("license") or "not stated"
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or ()}
    return HubListing(sizes, f"license {stated}{', gated and granted' if info.gated else ''}")


@contextmanager
def hub_errors_named(hub_id: str, revision: str, field: str) -> Iterator[None]:
    """Turns what huggingface_hub raises into an InputError that says what to do."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    where = os.environ.get("HF_ENDPOINT", "the hub")
    try:
        yield
    except GatedRepoError as error:
        remedy = "is gated, and this account may not download it: accept its license on its page, and set HF_TOKEN on every node"
        raise OutOfReach(field, hub_id, remedy) from error
    except RevisionNotFoundError as error:
        raise InputError(
            field, hub_id, f"has no revision {revision} at {where}: give one of its branches, tags or commits"
        ) from error
    except RepositoryNotFoundError as error:
        # A hub that wants no one to know of private models answers as if they were not there.
        raise InputError(field, hub_id, f"no such model at {where}, or a private one: correct the id, or set HF_TOKEN") from error
    except HFValidationError as error:
        raise InputError(field, hub_id, "is no hub id: write OWNER/NAME") from error
    except OfflineModeIsEnabled as error:
        remedy = "is not in this machine's cache, and HF_HUB_OFFLINE is set: unset that, or download it and give its folder"
        raise OutOfReach(field, hub_id, remedy) from error
    except LocalEntryNotFoundError as error:
        # What the hub said stands behind it: without a cached copy everything ends here.
        for cause in (error.__cause__, error.__context__):
            if isinstance(cause, HfHubHTTPError | OfflineModeIsEnabled):
                with hub_errors_named(hub_id, revision, field):
                    raise cause from error
        raise _unreachable(hub_id, where, error, field) from error
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else None
        if status in (401, 403):
            remedy = f"{where} refuses this account ({status}): set HF_TOKEN to a token that may read it, on every node"
            raise OutOfReach(field, hub_id, remedy) from error
        raise _unreachable(hub_id, where, error, field) from error
    except hub_errors() as error:
        raise _unreachable(hub_id, where, error, field) from error


def _unreachable(hub_id: str, where: str, error: BaseException, field: str) -> OutOfReach:
    reason = error_line(error, 160)
    return OutOfReach(field, hub_id, f"cannot be downloaded from {where} ({reason}): check the network, or give its folder")


def hub_errors() -> tuple[type[Exception], ...]:
    """Errors of a hub that refuses or does not answer, of a connection that breaks, and of a cache that cannot be used.

    Not all of a broken connection are of the hub's own kinds: the base is the one of the HTTP library that its client uses.
    """
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    http_error = next(base for base in HfHubHTTPError.__mro__ if base.__name__ == "HTTPError")
    return (http_error, LocalEntryNotFoundError, OSError)
