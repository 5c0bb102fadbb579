"""Adapters that lie in an object store: engines open local folders only."""

from __future__ import annotations

from pathlib import Path

from dat_ray.data.ids import row_id
from dat_ray.data.shards import list_folder, open_filesystem
from dat_ray.data.storage import answers_of
from dat_ray.errors import InputError
from dat_ray.models.embedded import cache_root
from dat_ray.models.folders import build_once


def local_adapter(adapter: str) -> str:
    """A local folder with the files of an adapter; one at a URI is copied into the cache, once a node.

    The copy is known by the address, size and time of every file, so that an adapter that was trained again at the
    same address is fetched again.

    Args:
        adapter: folder or URI.

    Raises:
        InputError: there is nothing at the URI.
    """
    if "://" not in adapter:
        return adapter
    fs, _ = open_filesystem(adapter)
    files = sorted(
        (info for info in list_folder(adapter) if info.is_file),
        key=lambda info: info.base_name,
    )
    if not files:
        raise InputError("adapter", adapter, "holds no files: run `dat train` on this run directory first")
    digest = row_id(adapter, *(part for info in files for part in (info.base_name, info.size, info.mtime_ns)))
    folder = cache_root().absolute() / "adapters" / digest

    def fetch(scratch: Path) -> None:
        for info in files:
            with answers_of(f"{adapter}/{info.base_name}"), fs.open_input_file(info.path) as stream:
                (scratch / info.base_name).write_bytes(stream.read())

    build_once(folder, {"adapter": adapter, "digest": digest}, fetch)
    return str(folder)
