from __future__ import annotations

from collections import Counter
from typing import Any

import pyarrow as pa
import pytest

from dat_ray.config.schema import Recipe
from dat_ray.data.ids import draw_prompt_tokens, row_id, seed_from_id
from dat_ray.data.schemas import BEHAVIORS, CANDIDATES
from dat_ray.errors import InputError
from dat_ray.generation import expand as module
from dat_ray.models.identity import sampler_fingerprint


def recipe(**changes) -> Recipe:
    tree: dict[str, Any] = {
        "name": "t",
        "seed": 3,
        "behaviors": {"path": "x", "heldout": {"path": "x"}},
        "sampler": {"model": "m", "prompt_tokens": [8, 16], "steps": 8},
        "target": {"model": "m"},
        "generation": {"samples_per_target": 5},
        "training": {"retain": {"path": "x"}},
    }
    for dotted, value in changes.items():
        section, _, field = dotted.partition("__")
        if field:
            tree[section] = {**tree[section], field: value}
        else:
            tree[section] = value
    return Recipe.model_validate(tree)


def behaviors(*rows: tuple[str, int, str, str]) -> pa.Table:
    return pa.Table.from_pylist(
        [
            {
                "behavior_id": identifier,
                "goal": f"goal of {identifier}",
                "category": None,
                "source": "test",
                "split": split,
                "target_index": index,
                "target": target,
                "refusal": "No.",
            }
            for identifier, index, target, split in rows
        ],
        schema=BEHAVIORS,
    )


def expand(behaviors: pa.Table, recipe: Recipe, weights: str = "w", **options) -> pa.Table:
    return module.expand(behaviors, recipe, sampler_fingerprint(recipe.sampler, weights), **options)


THREE = behaviors(("a", 0, "Sure, a", "train"), ("a", 1, "Of course, a", "train"), ("h", 0, "Sure, h", "heldout"))


GOLDEN = [
    ("a8e5a12de67c3cd8", 3667766571610177717, 8),
    ("de65411895499aad", 7013156433398748451, 16),
    ("88df1d3551a9ecf5", 5797601746869221155, 16),
]


def test_rows_are_training_targets_times_samples():
    table = expand(THREE, recipe())
    assert table.schema.equals(CANDIDATES)
    assert Counter(zip(table["behavior_id"].to_pylist(), table["target_index"].to_pylist(), strict=True)) == {
        ("a", 0): 5,
        ("a", 1): 5,
    }
    assert sorted(set(table["sample_index"].to_pylist())) == [0, 1, 2, 3, 4]
    assert len(set(table["candidate_id"].to_pylist())) == 10
    assert table["prompt"].null_count == table["error"].null_count == 10
    assert set(table["prompt_tokens"].to_pylist()) <= {8, 16}


def test_a_row_does_not_depend_on_the_others():
    whole = {row["candidate_id"]: row for row in expand(THREE, recipe()).to_pylist()}
    alone = expand(behaviors(("a", 1, "Of course, a", "train")), recipe(generation__samples_per_target=2)).to_pylist()
    assert len(alone) == 2
    assert all(whole[row["candidate_id"]] == row for row in alone)


@pytest.mark.parametrize(
    ("change", "options"), [({}, {"round_index": 1}), ({"sampler__temperature": 0.5}, {}), ({}, {"weights": "v"})]
)
def test_ids_change_with_what_determines_a_row(change, options):
    before, after = expand(THREE, recipe()), expand(THREE, recipe(**change), **options)
    assert not set(before["candidate_id"].to_pylist()) & set(after["candidate_id"].to_pylist())


def test_another_seed_draws_other_prompts_for_the_same_rows():
    before, after = expand(THREE, recipe()), expand(THREE, recipe(seed=4))
    assert before["candidate_id"].to_pylist() == after["candidate_id"].to_pylist()
    assert not set(before["seed"].to_pylist()) & set(after["seed"].to_pylist())
    assert min(before["seed"].to_pylist()) >= 0


def test_prompt_lengths_are_drawn_evenly():
    counts = Counter(draw_prompt_tokens((4, 8, 12), range(3000)))
    # 1000 each; six standard deviations of a binomial are 155.
    assert set(counts) == {4, 8, 12}
    assert max(abs(count - 1000) for count in counts.values()) < 155


def test_no_training_behavior_is_refused():
    with pytest.raises(InputError, match="holds no training behavior"):
        expand(behaviors(("h", 0, "Sure", "heldout")), recipe())


def test_a_target_given_twice_is_refused_by_name():
    with pytest.raises(InputError, match="behavior a has target 0 twice"):
        expand(behaviors(("b", 0, "S", "train"), ("a", 0, "S", "train"), ("a", 0, "S", "train")), recipe())


def test_a_likelihood_is_compared_under_another_behaviors_target_and_changes_no_row():
    both = behaviors(("a", 0, "Sure, a", "train"), ("b", 0, "Sure, b", "train"), ("c", 0, "Sure, c", "train"),
                     ("h", 0, "Sure, h", "heldout"))  # fmt: skip
    plain = expand(both, recipe(sampler__backend="torch"))
    asked = expand(both, recipe(sampler__likelihood_samples=4, sampler__backend="torch"))
    assert set(plain["other_target"].to_pylist()) == {None}
    rows = asked.to_pylist()
    assert {(row["target"], row["other_target"]) for row in rows} <= {
        (f"Sure, {one}", f"Sure, {other}") for one in "abc" for other in "abc" if one != other
    }
    assert len({row["other_target"] for row in rows}) == 3
    assert asked.drop_columns(["other_target"]).equals(plain.drop_columns(["other_target"]))


def test_a_likelihood_needs_another_behavior_to_compare_with():
    table = expand(THREE, recipe(sampler__likelihood_samples=4, sampler__backend="torch"))
    assert set(table["other_target"].to_pylist()) == {None}


@pytest.mark.parametrize(("samples", "backend", "reason"), [(1, "torch", "at least 2"), (8, "vllm", "backend to torch")])
def test_a_likelihood_that_cannot_be_had_is_refused(samples, backend, reason):
    with pytest.raises(ValueError, match=reason):
        recipe(sampler__likelihood_samples=samples, sampler__backend=backend)


def test_ids_and_seeds_are_fixed_for_all_time():
    """Written down from the first version of this function."""
    rows = module.expand(THREE, recipe(), "law").to_pylist()
    assert [(row["candidate_id"], row["seed"], row["prompt_tokens"]) for row in (rows[0], rows[4], rows[9])] == GOLDEN


def test_a_row_is_what_its_definition_says():
    rows = expand(behaviors(("ä", 3, 'Sure, "quoted"\n', "train")), recipe(seed=9), round_index=2).to_pylist()
    law = sampler_fingerprint(recipe().sampler, "w")
    for sample, row in enumerate(rows):
        identifier = row_id("ä", 3, 'Sure, "quoted"\n', 2, sample, law)
        seed = seed_from_id(row_id(9, identifier))
        length = (8, 16)[seed_from_id(row_id("prompt_tokens", seed)) % 2]
        assert {name: row[name] for name in ("candidate_id", "seed", "prompt_tokens", "sample_index", "round", "sampler")} == {
            "candidate_id": identifier,
            "seed": seed,
            "prompt_tokens": length,
            "sample_index": sample,
            "round": 2,
            "sampler": law,
        }


def test_prompts_for_harmless_requests_come_after_those_for_goals_and_change_none_of_them() -> None:
    both = behaviors(*[("a", 0, "Sure, a", "train"), ("w", 0, "Sure, w", "harmless"), ("w", 1, "Here is w", "harmless")])
    found = expand(both, recipe(generation={"samples_per_target": 3, "harmless_samples_per_target": 2}))
    alone = expand(behaviors(("a", 0, "Sure, a", "train")), recipe(generation={"samples_per_target": 3}))
    assert found.slice(0, 3).equals(alone)
    assert found["split"].to_pylist() == ["train"] * 3 + ["harmless"] * 4
    rest = found.slice(3).to_pylist()
    assert [(row["behavior_id"], row["target_index"], row["sample_index"]) for row in rest] == [
        ("w", 0, 0),
        ("w", 0, 1),
        ("w", 1, 0),
        ("w", 1, 1),
    ]
    assert len({row["seed"] for row in found.to_pylist()}) == 7


def test_later_rounds_draw_for_goals_alone() -> None:
    both = behaviors(("a", 0, "Sure, a", "train"), ("w", 0, "Sure, w", "harmless"))
    one = recipe(generation={"samples_per_target": 3, "harmless_samples_per_target": 2})
    assert [expand(both, one, round_index=index).num_rows for index in range(3)] == [5, 3, 3]
    assert set(expand(both, one, round_index=1)["split"].to_pylist()) == {"train"}


def test_a_prompt_is_never_compared_with_the_response_of_a_harmless_request() -> None:
    rows = behaviors(("a", 0, "Sure, a", "train"), ("b", 0, "Sure, b", "train"), ("w", 0, "Sure, w", "harmless"))
    found = expand(rows, recipe(sampler__likelihood_samples=2, sampler__backend="torch")).to_pylist()
    assert {row["other_target"] for row in found if row["behavior_id"] == "a"} == {"Sure, b"}
    assert {row["other_target"] for row in found if row["behavior_id"] == "w"} == {None}
