from __future__ import annotations

from pathlib import Path

import pytest

from dat_ray.errors import InputError
from dat_ray.models.remote import local_adapter


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DAT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def adapter(root: Path, weights: bytes) -> str:
    root.mkdir(exist_ok=True)
    (root / "adapter_config.json").write_text("{}")
    (root / "adapter_model.safetensors").write_bytes(weights)
    return root.as_uri()


def test_a_local_folder_stays_where_it_is(tmp_path: Path, cache: Path) -> None:
    assert local_adapter(str(tmp_path / "adapter")) == str(tmp_path / "adapter")
    assert not cache.exists()


def test_one_at_a_uri_is_copied_once(tmp_path: Path, cache: Path) -> None:
    uri = adapter(tmp_path / "far", b"weights")
    found = Path(local_adapter(uri))
    assert found.is_relative_to(cache)
    assert (found / "adapter_model.safetensors").read_bytes() == b"weights"
    assert (found / "adapter_config.json").read_text() == "{}"
    before = (found / "adapter_model.safetensors").stat().st_mtime_ns
    assert local_adapter(uri) == str(found)
    assert (found / "adapter_model.safetensors").stat().st_mtime_ns == before


def test_one_trained_again_at_the_same_address_is_fetched_again(tmp_path: Path) -> None:
    first = local_adapter(adapter(tmp_path / "far", b"weights"))
    second = local_adapter(adapter(tmp_path / "far", b"longer weights"))
    assert first != second
    assert (Path(second) / "adapter_model.safetensors").read_bytes() == b"longer weights"


def test_an_address_with_nothing_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"adapter = 'file:.*holds no files: run `dat train`"):
        local_adapter((tmp_path / "nowhere").as_uri())
