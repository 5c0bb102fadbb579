"""How a rehearsal ends: a failing stage by name and engine, and the table of what was done."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from dat_ray.cli import main
from dat_ray.config.loading import load_recipe
from dat_ray.data.schemas import BEHAVIORS
from dat_ray.errors import DatError, InputError
from dat_ray.rehearsal import rehearse as rehearsing
from dat_ray.rehearsal.overlay import Machine, rehearsed
from dat_ray.rehearsal.table import lines


@pytest.fixture
def staged(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Stages that do nothing in place of the real ones, without Ray; what is put in here happens instead."""
    stages: dict[str, Any] = {name: ("", lambda *_: {"rows": 1}) for name in rehearsing.STAGES}
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    small, replaced = rehearsed(load_recipe("demo"), Machine(), "torch")
    monkeypatch.setattr(rehearsing, "STAGES", stages)
    monkeypatch.setattr(rehearsing, "prepare", lambda recipe, *_: rehearsing.RehearsalPlan(recipe, small, [], replaced))
    monkeypatch.setattr(rehearsing, "check_inputs", lambda _: BEHAVIORS.empty_table())
    monkeypatch.setattr(rehearsing, "_forecast", lambda *_: "12 rows, none cut")
    monkeypatch.setattr(rehearsing, "session", lambda *_: nullcontext())
    monkeypatch.setattr(rehearsing, "_export", lambda *_: {"parameters": 7})
    return stages


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (DatError("the target did not start: no room"), "stage train, target: the target did not start: no room"),
        (DatError("too many rows"), "stage train: too many rows"),
        # Bad input that nobody saw before the start is a failed rehearsal too.
        (InputError("sampler.layout", "chat", "set answer"), "stage train, sampler: sampler.layout = 'chat': set answer"),
    ],
)
def test_the_first_failure_is_one_line_with_stage_and_engine(
    error: DatError, line: str, staged: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise error

    staged["train"] = ("", fail)
    staged["evaluate"] = ("", lambda *_: pytest.fail("went on"))
    assert main(["rehearse", "demo", "--run-dir", str(tmp_path / "run")]) == 1
    assert capsys.readouterr().err.strip().splitlines()[-1] == f"dat rehearse: {line}"


def test_a_rehearsal_that_goes_through_lists_values_and_stages(
    staged: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    staged["train"] = ("", lambda *_: {"rows": 5, "cut": 3, "left_out": 2})
    assert main(["rehearse", "demo", "--run-dir", str(tmp_path / "run")]) == 0
    out = capsys.readouterr().out
    assert "training.updates" in out
    updates = str(load_recipe("demo").training.updates)
    assert next(line for line in out.splitlines() if line.startswith("training.updates")).split()[1:] == [updates, "2", "size"]
    stages = [line.split()[0] for line in out[out.index("stage ") :].splitlines()[1:7]]
    assert stages == ["generate", "select", "train", "evaluate", "report", "export"]
    train = next(line for line in out.splitlines() if line.startswith("train "))
    assert train.split()[1:3] == ["trainer", "(torch)"]
    assert train.split()[-3:] == ["5", "3", "2"]
    assert "all behaviors: 12 rows, none cut" in out


def test_a_rehearsal_needs_a_folder_of_its_own_and_no_cluster(
    staged: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    assert main(["rehearse", "demo", "--run-dir", str(tmp_path / "run")]) == 2
    assert "begins anew" in capsys.readouterr().err
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert main(["rehearse", "demo", "--run-dir", str(tmp_path / "other")]) == 2
    assert "runs here: unset it" in capsys.readouterr().err


def test_columns_are_as_wide_as_their_longest_cell() -> None:
    assert list(lines([("a", "b"), ("ccc", "d")])) == ["a    b", "ccc  d"]


def test_a_judge_that_loads_a_model_of_its_own_is_not_rehearsed() -> None:
    recipe = load_recipe("demo", ["judge={name: 'judgezoo:harmbench'}"])
    with pytest.raises(InputError, match=r"^judge\.name = 'judgezoo:harmbench': loads a model of its own"):
        rehearsing.prepare(recipe, Machine())


def test_a_backend_that_is_asked_for_and_not_installed_is_refused() -> None:
    with pytest.raises(InputError, match=r"^--backend = 'vllm': is not installed here"):
        rehearsing.prepare(load_recipe("demo"), Machine(vllm=False), "vllm")
