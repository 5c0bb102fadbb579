"""Attacks are found by name or path; one of somebody else runs from end to end, and only where somebody asked for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dat_ray.config.schema import Recipe
from dat_ray.data.shards import read_table
from dat_ray.data.trust import outside_values, require_trust
from dat_ray.errors import InputError
from dat_ray.evaluation.compared import Model
from dat_ray.evaluation.registry import builtin_attacks, check_attacks, chosen_attacks
from dat_ray.evaluation.stage import evaluate
from tests.golden.in_process import in_process
from tests.ray.tiny_evaluation import HELD_OUT, LOOK_ALIKES, Faults, engines, tiny_recipe, tiny_run

TOY = "tests.unit.evaluation.toy_attack"


def recipe(*attacks: str, **evaluation: Any) -> Recipe:
    return tiny_recipe(evaluation={"attacks": attacks, **evaluation})


@pytest.mark.parametrize("name", list(builtin_attacks()))
def test_every_attack_says_what_it_is(name: str) -> None:
    kind = builtin_attacks()[name]
    for fact in (kind.title, kind.description):
        assert fact
        assert not fact.endswith(".")
    assert kind.gradients == (name in ("gcg", "beast", "pgd", "embedding"))


@pytest.mark.parametrize("name", [name for name, kind in builtin_attacks().items() if kind.needs and kind.needs != ("sampler",)])
def test_an_attack_without_what_it_needs_is_refused(name: str) -> None:
    [field] = builtin_attacks()[name].needs
    with pytest.raises(InputError, match=rf"{name}'? ?.*needs {field}: give it, or leave the attack out"):
        check_attacks(recipe(name))


@pytest.mark.parametrize(
    ("entries", "problem"),
    [
        (("templetes",), "did you mean templates"),
        (("base",), "is no attack"),
        (("nobodys_package.attack:Some",), "cannot be imported (ModuleNotFoundError: No module named 'nobodys_package')"),
        ((f"{TOY}:Absent",), "cannot be imported (AttributeError"),
        ((f"{TOY}:Question",), "is no subclass of dat_ray.evaluation.attacks.base.Attack"),
        ((f"{TOY}:Nameless",), "does not say its name and title"),
        ((f"{TOY}:Pretender",), "its name 'pair' is taken"),
        ((f"{TOY}:Echo", f"{TOY}:EchoAgain"), "has the name echo of another attack"),
    ],
)
def test_an_entry_that_is_no_attack_says_why(entries: tuple[str, ...], problem: str) -> None:
    with pytest.raises(InputError) as error:
        chosen_attacks(recipe(*entries).evaluation)
    assert problem in str(error.value)
    assert str(error.value).startswith("evaluation.attacks = ")


@pytest.mark.parametrize("entry", ["", "Direct", "a b", "a:b:c", "a.:b", "../x:y", "os.path:", "x;y"])
def test_what_has_the_form_of_no_attack_is_refused_by_the_recipe(entry: str) -> None:
    with pytest.raises(ValueError, match="names no attack"):
        recipe(entry)


def test_an_attack_of_somebody_else_runs_from_end_to_end(tmp_path: Path) -> None:
    config = tiny_recipe(evaluation={"attacks": ["direct", f"{TOY}:Echo"]})
    run, faults = tiny_run(tmp_path / "run", config), Faults(str(tmp_path))
    models = [Model("base", None, "w0"), Model("adapted", run.adapter(0), "w1")]
    with in_process(lambda body: ""):
        done = evaluate(config, run, engines=engines(faults), models=models)
    rows = [row for row in read_table(run.evaluation("default")).to_pylist() if row["attack"] == "echo"]
    assert done.rows == 2 * (HELD_OUT * 3 + LOOK_ALIKES)
    second = {(row["model"], row["behavior_id"]): row["prompt"] for row in rows if row["attempt_index"] == 1}
    first = {(row["model"], row["behavior_id"]): row["completion"] for row in rows if row["attempt_index"] == 0}
    assert second == first
    assert len(second) == 2 * HELD_OUT
    figures = done.metrics.models["base"].attacks["echo"]
    assert figures.attempts == 2 * HELD_OUT
    assert figures.exchangeable is False
    # Nobody is asked again by a call that finds everything there.
    asked = faults.noted("base")
    with in_process(lambda body: ""):
        assert evaluate(config, run, engines=engines(faults), models=models).skipped
    assert faults.noted("base") == asked


def test_a_stored_recipe_s_class_is_not_imported_without_trust(tmp_path: Path) -> None:
    stored = recipe("direct", "nobodys_package.attack:Some")
    [value] = outside_values(stored, ["evaluation"])
    assert str(value) == "evaluation.attacks = 'nobodys_package.attack:Some' (class to import)"
    with pytest.raises(InputError, match="nobodys_package"):
        require_trust(stored, ["evaluation"], "run", option="--run-dir", trusted=False)
    require_trust(stored, ["evaluation"], "run", option="--run-dir", trusted=False, own=stored)
    assert outside_values(recipe("direct", "pair", attacker={"model": "x"}), ["evaluation.attacks"]) == []
