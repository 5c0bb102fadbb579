"""The probe of `dat doctor` in a run directory: what is there before, and what comes meanwhile, stays."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dat_ray.config.loading import load_recipe
from dat_ray.data.rundir import open_run
from dat_ray.data.shards import join, write_bytes
from dat_ray.ops import nodes
from dat_ray.ops.nodes import ask_every_node

NODE = {"NodeID": "f00d" * 4, "NodeName": "n"}


@pytest.fixture
def ask(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path, Callable[[], None]], list[Any]]:
    """Asks one node that answers well, after something has happened while it was waited for."""

    def asked(run_dir: Path, meanwhile: Callable[[], None]) -> list[Any]:
        def answers(_nodes: Any, probe: str, _installed: Any) -> tuple[dict[str, Any], list[Any]]:
            meanwhile()
            write_bytes(join(probe, NODE["NodeID"]), b"x")
            return {nodes._name(NODE): {"trouble": ""}}, []

        monkeypatch.setattr(nodes, "_answers_of", answers)
        return ask_every_node([NODE], str(run_dir), {})

    return asked


def _files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_a_probe_leaves_no_trace(tmp_path: Path, ask: Callable) -> None:
    (finding,) = ask(tmp_path / "new" / "run", lambda: None)
    assert finding.ok
    assert _files(tmp_path) == set()
    (tmp_path / "mine").mkdir()
    ask(tmp_path / "mine", lambda: None)
    assert _files(tmp_path) == {"mine"}, "an empty folder that was there stays"


def test_a_run_that_begins_during_the_probe_stays(tmp_path: Path, ask: Callable) -> None:
    recipe, root = load_recipe("demo"), tmp_path / "new" / "run"
    ask(root, lambda: open_run(str(root), recipe, resume=True))
    assert open_run(str(root), recipe, resume=True).root == str(root)
    assert not list(root.glob(".doctor-*"))


def test_a_file_beside_a_run_directory_that_was_made_for_the_probe_stays(tmp_path: Path, ask: Callable) -> None:
    ask(tmp_path / "new" / "run", lambda: (tmp_path / "new" / "notes.txt").write_text("mine"))
    assert _files(tmp_path) == {"new", "new/notes.txt"}


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_a_question_that_is_broken_off_takes_its_probe_away(tmp_path: Path, ask: Callable, error: type[BaseException]) -> None:
    def stop() -> None:
        raise error

    with pytest.raises(error):
        ask(tmp_path / "run", stop)
    assert _files(tmp_path) == set()


def test_a_place_that_cannot_be_written_is_a_finding(tmp_path: Path, ask: Callable) -> None:
    (tmp_path / "file").write_text("x")
    (finding,) = ask(tmp_path / "file" / "run", lambda: None)
    assert not finding.ok
    assert _files(tmp_path) == {"file"}
