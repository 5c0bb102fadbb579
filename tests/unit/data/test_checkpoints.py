"""Checkpoint folders: every damage is seen, and the newest that is whole is read."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pyarrow.fs as pafs
import pytest
from safetensors import SafetensorError

from dat_ray.data import checkpoints
from dat_ray.data.checkpoints import (
    STATE,
    drop_checkpoints,
    list_checkpoints,
    load_newest,
    publish_folder,
    read_sealed,
    save_at,
    seal,
)
from dat_ray.errors import DamagedCheckpoint, InputError, StorageError
from tests.unit.data.damages import copied, damages


def _write(done: int, folder: Path) -> None:
    (folder / "adapter.safetensors").write_bytes(bytes(range(200)) * 3 + bytes([done]))
    (folder / "optimizer.safetensors").write_bytes(b"moments" * 40)
    seal(folder, {"updates_done": done, "run": "f00d"})


def _read(folder: Path) -> int:
    return int(read_sealed(folder)["updates_done"])


def _saved(root: Path, *numbers: int) -> list[str]:
    for number in numbers:
        save_at(str(root), f"update-{number:08d}", partial(_write, number))
    return list_checkpoints(str(root), r"update-\d{8}")


def test_every_damage_is_seen(tmp_path: Path) -> None:
    (name,) = _saved(tmp_path / "whole", 12)
    folder = tmp_path / "whole" / name
    assert _read(folder) == 12
    seen = 0
    for damage, act in damages(folder, flips=100):
        act(copied(folder, tmp_path / "damaged"))
        with pytest.raises(DamagedCheckpoint):
            print(damage, _read(tmp_path / "damaged"))
        seen += 1
    assert seen > 300


def test_a_state_of_version_0_1_is_read(tmp_path: Path) -> None:
    (tmp_path / STATE).write_text('{"format": 1, "updates_done": 8, "run": "f00d"}')
    assert _read(tmp_path) == 8
    (tmp_path / STATE).write_text("[1]")
    with pytest.raises(DamagedCheckpoint, match="no mapping"):
        _read(tmp_path)


def test_the_newest_whole_one_is_read_and_the_damaged_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = _saved(tmp_path, 4, 8, 12)
    assert load_newest(str(tmp_path), names, _read, "update") == (12, names[2])
    assert capsys.readouterr().err == ""
    (tmp_path / names[2] / STATE).write_text("")
    assert load_newest(str(tmp_path), names, _read, "update") == (8, names[1])
    said = capsys.readouterr().err
    assert said.startswith(f"checkpoint damaged: {tmp_path}/{names[2]} (JSONDecodeError: ")
    assert said.endswith(f": going on from update 8, {tmp_path}/{names[1]}\n")
    (tmp_path / names[1] / "adapter.safetensors").write_bytes(b"")
    (tmp_path / names[0] / "optimizer.safetensors").unlink()
    assert load_newest(str(tmp_path), names, _read, "update") == (0, None)
    said = capsys.readouterr().err
    assert all(f"{tmp_path}/{name} (" in said for name in names)
    assert said.endswith("no other one is readable, starting again from update 0\n")
    assert said.count("\n") == 1


def test_one_of_another_run_is_an_error_and_no_older_one_is_read(tmp_path: Path) -> None:
    def refuse(_folder: Path) -> int:
        raise InputError("resume", "x", "name a new folder")

    with pytest.raises(InputError):
        load_newest(str(tmp_path), _saved(tmp_path, 4, 8), refuse, "update")


def test_two_are_kept_and_what_lay_after_a_damaged_one_goes(tmp_path: Path) -> None:
    names = _saved(tmp_path, 2, 4, 8, 12)
    drop_checkpoints(str(tmp_path), names, names[3])
    assert list_checkpoints(str(tmp_path), r"update-\d{8}") == names[2:]
    # 12 was damaged: the run goes on from 8, and is told at 10 that its node will go.
    names = _saved(tmp_path, 10)
    drop_checkpoints(str(tmp_path), names, "update-00000010")
    assert list_checkpoints(str(tmp_path), r"update-\d{8}") == ["update-00000008", "update-00000010"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, SafetensorError("No space left on device"), OSError("full")])
def test_one_that_is_not_written_whole_is_not_there(tmp_path: Path, error: BaseException) -> None:
    _saved(tmp_path, 4)

    def write(folder: Path) -> None:
        (folder / "adapter.safetensors").write_bytes(b"half")
        raise error

    with pytest.raises((KeyboardInterrupt, StorageError)):
        save_at(str(tmp_path), "update-00000008", write)
    assert [path.name for path in tmp_path.iterdir()] == ["update-00000004"]


def test_elsewhere_than_on_a_local_disk_they_are_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An object store has no rename: a copy that was broken off is known by its sums."""
    (tmp_path / "store").mkdir()
    store = pafs.SubTreeFileSystem(str(tmp_path / "store"), pafs.LocalFileSystem())
    monkeypatch.setattr(checkpoints, "open_filesystem", lambda path: (store, path.removeprefix("s3://bucket/")))
    root = "s3://bucket/state"
    for number in (4, 8):
        save_at(root, f"update-{number:08d}", partial(_write, number))
    names = list_checkpoints(root, r"update-\d{8}")
    assert load_newest(root, names, _read, "update") == (8, names[1])
    (tmp_path / "store" / "state" / names[1] / "optimizer.safetensors").unlink()
    assert load_newest(root, names, _read, "update") == (4, names[0])
    save_at(root, names[1], lambda folder: _write(9, folder))
    assert load_newest(root, names, _read, "update") == (9, names[1])
    drop_checkpoints(root, names, names[0])
    assert list_checkpoints(root, r"update-\d{8}") == names[:1]


def test_a_folder_is_replaced_whole_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    new = tmp_path / "new"
    new.mkdir()
    for content in ("first", "second"):
        (new / "config.json").write_text(json.dumps(content))
        publish_folder(new, str(tmp_path / "run" / "adapter"))
        assert json.loads((tmp_path / "run" / "adapter" / "config.json").read_text()) == content
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["adapter"]
