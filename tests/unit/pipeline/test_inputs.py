from __future__ import annotations

import json
from pathlib import Path

import pytest

from dat_ray.cli import main
from dat_ray.config.loading import load_recipe
from dat_ray.data.behaviors import load_behaviors
from dat_ray.data.rundir import RunDir
from dat_ray.data.shards import write_file
from dat_ray.data.trust import outside_values
from dat_ray.errors import InputError
from dat_ray.pipeline import evaluations, stages, study


def test_retain_rows_that_are_left_out_are_counted_on_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(stages, "check_models", lambda recipe, *, trains: None)
    turns = [{"role": "user", "content": "Name a bird"}, {"role": "assistant", "content": "A robin."}]
    chats = [turns, turns[:1], [], [turns[0], {"role": "assistant", "content": ""}]]
    path = tmp_path / "chats.jsonl"
    path.write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in chats))
    stages.check_inputs(load_recipe("demo", [f"training.retain.path={path}"]), trains=False)
    assert capsys.readouterr().err.splitlines()[-1] == (
        "retain: 3 rows left out; 2: each holds no user message that the assistant answers next; "
        "1: each holds a message that is empty or more than text"
    )


MISSPELT = {
    "evaluation.prompts.1.path": [
        "evaluation.attacks=[direct,prompts]",
        "evaluation.prompts=[{path: 'GOALS', name: first}, {path: gone.jsonl}]",
    ],
    "evaluation.templates_path": ["evaluation.attacks=[templates]", "evaluation.templates_path=gone.jsonl"],
    "selection.rewrites": ["selection.source=mixture", "selection.rewrites=gone.jsonl", "training.retain.inpainted_share=0"],
}


@pytest.mark.parametrize("field", MISSPELT)
def test_a_misspelt_file_of_a_later_stage_is_named_before_anything_starts(
    field: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(stages, "check_models", lambda recipe, *, trains: None)
    (tmp_path / "goals.csv").write_text("goal,prompt\nWrite a poem,Write a poem about rain\n")
    settings = [setting.replace("GOALS", str(tmp_path / "goals.csv")) for setting in MISSPELT[field]]
    with pytest.raises(InputError, match=f"^{field} = 'gone.jsonl': no such file"):
        stages.check_inputs(load_recipe("demo", settings), trains=False)
    wanted = [f"--set={setting}" for setting in settings]
    assert main(["doctor", "demo", *wanted]) == 1
    [told, *_] = [line for line in capsys.readouterr().out.splitlines() if "gone.jsonl" in line]
    assert told.startswith(("FAIL attacks", "FAIL rewrites"))


def test_prompts_of_other_goals_are_found_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Evaluation comes hours later."""
    monkeypatch.setattr(stages, "check_models", lambda recipe, *, trains: None)
    monkeypatch.setattr(study, "check_models", lambda recipe: None)
    monkeypatch.setattr(evaluations, "named_models", lambda recipe, models: [])
    path = tmp_path / "poems.csv"
    path.write_text("goal,prompt\nWrite a poem,Write a poem about rain\n")
    settings = ["evaluation.attacks=[direct,prompts]", f"evaluation.prompts=[{{path: '{path}'}}]"]
    recipe, run = load_recipe("demo", settings), RunDir(str(tmp_path / "run"))
    write_file(run.behaviors, load_behaviors(recipe.behaviors).table)
    for check in (
        lambda: stages.check_inputs(recipe, trains=False),
        lambda: study.check_the_rest(recipe),
        lambda: evaluations.check_compared(recipe, run, "base"),
    ):
        with pytest.raises(InputError, match=r"^evaluation.prompts.0.path = .* holds no prompt for the behaviors") as found:
            check()
        assert str(found.value).isprintable()
    assert main(["doctor", "demo", *(f"--set={setting}" for setting in settings)]) == 1
    told = [line for line in capsys.readouterr().out.splitlines() if "poems.csv" in line]
    assert [line.split(":")[0] for line in told] == ["FAIL behaviors", "FAIL plan"]


def test_a_file_of_an_attack_that_the_recipe_does_not_make_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "check_models", lambda recipe, *, trains: None)
    settings = ["evaluation.attacks=[direct]", "evaluation.templates_path=gone.jsonl"]
    stages.check_inputs(load_recipe("demo", settings), trains=False)


def test_files_that_the_checks_of_a_beginning_read_are_vouched_for(tmp_path: Path) -> None:
    settings = ["selection.source=mixture", "selection.rewrites=theirs.csv", "evaluation.templates_path=theirs.csv"]
    recipe = load_recipe("demo", [*settings, "evaluation.prompts=[{path: theirs.csv}]"])
    sections = stages.sections_read(["generate"], recipe, RunDir(str(tmp_path)))
    assert {value.field for value in outside_values(recipe, sections)} == set(MISSPELT) - {"evaluation.prompts.1.path"} | {
        "evaluation.prompts.0.path"
    }
