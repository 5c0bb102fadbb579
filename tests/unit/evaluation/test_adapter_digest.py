from __future__ import annotations

from pathlib import Path

import pytest

from dat_ray.errors import InputError
from dat_ray.evaluation.compared import adapter_digest


def adapter(folder: Path, weights: bytes) -> str:
    folder.mkdir()
    (folder / "adapter_config.json").write_text("{}")
    (folder / "adapter_model.safetensors").write_bytes(weights)
    return str(folder)


def test_digest_follows_the_weights_and_nothing_else(tmp_path: Path) -> None:
    first, same = adapter(tmp_path / "a", b"\x01\x02"), adapter(tmp_path / "b", b"\x01\x02")
    (tmp_path / "b" / "README.md").write_text("a note")
    assert adapter_digest(first) == adapter_digest(same)
    assert adapter_digest(first) != adapter_digest(adapter(tmp_path / "c", b"\x01\x03"))


def test_a_missing_adapter_says_which_stage_makes_it(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="dat train"):
        adapter_digest(str(tmp_path / "none"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="dat train"):
        adapter_digest(str(tmp_path / "empty"))
