"""`~` in every path of a recipe and of the command line; never a folder called `~`."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import AfterValidator, BaseModel

from dat_ray.cli import _PATHS, _parser, main
from dat_ray.config.adapt import AdaptRecipe
from dat_ray.config.loading import load_recipe
from dat_ray.config.schema import Recipe
from dat_ray.config.section import expand_home
from dat_ray.errors import InputError


@pytest.fixture(autouse=True)
def _home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")


@pytest.mark.parametrize(
    ("given", "expanded"),
    [
        ("~", "/home/somebody"),
        ("~/data/goals.csv", "/home/somebody/data/goals.csv"),
        ("data/~/goals.csv", "data/~/goals.csv"),
        ("s3://bucket/~/runs", "s3://bucket/~/runs"),
        ("hf:owner/name:train", "hf:owner/name:train"),
        ("builtin:demo-train", "builtin:demo-train"),
        ("owner/model", "owner/model"),
    ],
)
def test_a_home_is_written_out_at_the_start_alone(given: str, expanded: str) -> None:
    assert expand_home(given) == expanded


def _texts(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, field in model.model_fields.items():
        options = [field.annotation, *get_args(field.annotation)]
        section = next((one for one in options if isinstance(one, type) and issubclass(one, BaseModel)), None)
        if section is not None:
            yield from _texts(section, f"{prefix}{name}.")
        elif str in options or any(str in get_args(one) for one in options):
            yield f"{prefix}{name}", field


@pytest.mark.parametrize("root", [Recipe, AdaptRecipe])
def test_every_field_that_may_hold_a_path_writes_homes_out(root: type[BaseModel]) -> None:
    for name, field in _texts(root):
        last = name.rsplit(".", 1)[-1]
        if last.endswith(("path", "dir", "folder", "file")) or last in ("model", "rewrites", "mlflow_uri"):
            given = [field.metadata, *(getattr(option, "__metadata__", ()) for option in get_args(field.annotation))]
            functions = [one.func for group in given for one in group if isinstance(one, AfterValidator)]
            assert expand_home in functions, f"{name} takes a path: annotate it as PathText"


def test_paths_of_a_recipe() -> None:
    recipe = load_recipe("demo", ["behaviors.heldout.path=~/h.csv", "target.model=~/m", "evaluation.templates_path=~/t.csv"])
    assert recipe.behaviors.heldout.path == "/home/somebody/h.csv"
    assert recipe.target.model == "/home/somebody/m"
    assert recipe.evaluation.templates_path == "/home/somebody/t.csv"
    with pytest.raises(InputError, match="no home folder is known for ~no-such-person: write the path out") as caught:
        load_recipe("demo", ["training.retain.path=~no-such-person/r.csv"])
    assert caught.value.field == "training.retain.path"


def test_every_path_option_of_the_command_line_is_known() -> None:
    """An option or argument that is shown as a folder or file, in any verb."""
    (verbs,) = (one for one in _parser()._actions if isinstance(one, argparse._SubParsersAction))
    shown = {
        action.dest
        for verb in verbs.choices.values()
        for action in verb._actions
        if action.metavar in ("DIR", "FILE", "JSON", "TABLE", "RUN_DIR", "RECIPE", "BASE")
    }
    assert shown == set(_PATHS) - {"name"}


def test_no_folder_of_that_name_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    table = tmp_path / "home" / "labels.csv"
    table.parent.mkdir()
    table.write_text("goal,completion,label\nName a bird,A robin is a bird,harmful\n")
    assert main(["evaluate", "--calibrate", "~/labels.csv", "--out=~/out/figures.json"]) == 0
    assert (tmp_path / "home" / "out" / "figures.json").is_file()
    assert main(["generate", "demo", "--run-dir=~no-such-person/run"]) == 2
    assert "run_dir = '~no-such-person/run': no home folder is known" in capsys.readouterr().err
    # A job's run directory is another machine's.
    job = ["submit", "run", "demo", "--address", "http://127.0.0.1:9", "--run-dir=~/run", "--working-dir", str(tmp_path)]
    assert main(job) == 2
    assert "give an absolute path" in capsys.readouterr().err
    assert sorted(one.name for one in tmp_path.iterdir()) == ["home"]
