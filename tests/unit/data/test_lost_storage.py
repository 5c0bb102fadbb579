"""A storage that goes away while a verb reads: one line, at whichever call it happens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.fs as pafs
import pytest

from dat_ray.cli import main
from dat_ray.data import shards
from dat_ray.data.shards import read_bytes
from dat_ray.errors import UnreachableStorage
from tests.unit.reporting.synthetic_run import finished_run


class Lost(pafs.LocalFileSystem):
    """Answers so many calls, and then none."""

    error: OSError = OSError(5, "Input/output error")
    left, calls = 0, 0

    def _count(self) -> None:
        self.calls += 1
        if self.calls > self.left:
            raise self.error

    def get_file_info(self, *arguments: Any) -> Any:
        self._count()
        return super().get_file_info(*arguments)

    def open_input_file(self, *arguments: Any, **named: Any) -> Any:
        self._count()
        return super().open_input_file(*arguments, **named)

    def open_input_stream(self, *arguments: Any, **named: Any) -> Any:
        self._count()
        return super().open_input_stream(*arguments, **named)


@pytest.fixture
def lost(monkeypatch: pytest.MonkeyPatch) -> Lost:
    storage = Lost()
    monkeypatch.setattr(shards, "_LOCAL", storage)
    return storage


ERRORS = [OSError(5, "Input/output error"), FileNotFoundError(2, "No such file"), PermissionError(13, "Permission denied")]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize(("verb", "tries"), [("status", 30), ("curves", 4), ("report", 6)])
def test_a_reading_verb_ends_with_one_line(
    verb: str, tries: int, error: OSError, lost: Lost, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lost.left = 1_000_000
    run = finished_run(tmp_path / "run")
    command = {
        "status": ["status", run.root],
        "curves": ["curves", run.root, "--out", str(tmp_path / "curves.html")],
        "report": ["report", "--run-dir", run.root, "--out", str(tmp_path / "report")],
    }[verb]
    lost.calls = 0
    assert main(command) == 0
    calls, lost.error = lost.calls, error
    capsys.readouterr()
    for answered in range(0, calls, -(-calls // tries)):
        lost.left, lost.calls = answered, 0
        code, said = main(command), capsys.readouterr().err
        assert "Traceback" not in said, (answered, said)
        # What a stage will make again may be passed over, as a file that is being written.
        assert code in (0, 1, 2)
        if code:
            line = said.splitlines()[-1]
            assert line.startswith(f"dat {verb}: ")
            # What a storage does not hand over is whole, as far as anybody knows.
            assert ("is not there: " if isinstance(error, FileNotFoundError) else "cannot be reached") in line
            assert "remove" not in line


def test_a_file_that_is_gone_is_told_from_a_storage_that_is(lost: Lost, tmp_path: Path) -> None:
    lost.left = 1_000_000
    with pytest.raises(UnreachableStorage, match="absent is not there: restore it, or run again what writes it"):
        read_bytes(str(tmp_path / "absent"))
    lost.left = 0
    with pytest.raises(UnreachableStorage, match=r"present cannot be reached \(.*Input/output error\): check the path"):
        read_bytes(str(tmp_path / "present"))
