"""Tells one adapter's weights from another's."""

from __future__ import annotations

import hashlib

import pyarrow.fs as pafs

from dat_ray.data.shards import exists, open_filesystem
from dat_ray.errors import InputError


def adapter_digest(folder: str) -> str:
    """16 hex digits of the sha256 over an adapter folder's files `adapter_*`, by name.

    Raises:
        InputError: there is no adapter in the folder.
    """
    found = []
    if exists(folder):
        fs, inner = open_filesystem(folder)
        found = sorted(
            (info for info in fs.get_file_info(pafs.FileSelector(inner)) if info.base_name.startswith("adapter_")),
            key=lambda info: info.base_name,
        )
    if not found:
        raise InputError("--run-dir", folder, "holds no adapter: run `dat train` on this run directory first")
    digest = hashlib.sha256()
    for info in found:
        digest.update(info.base_name.encode())
        with fs.open_input_stream(info.path) as stream:
            while piece := stream.read(1 << 20):
                digest.update(piece)
    return digest.hexdigest()[:16]
