from __future__ import annotations

import pyarrow as pa
import pytest

from dat_ray.config.schema import Recipe
from dat_ray.data.schemas import BEHAVIORS, REQUESTS
from dat_ray.errors import DatError
from dat_ray.evaluation.attacks.base import Setup
from dat_ray.evaluation.attacks.direct import Direct
from dat_ray.evaluation.attacks.inpainting import drawn_questions, infill_requests
from dat_ray.evaluation.questions import OVER_REFUSAL, Question, SeedScope, behaviors_of, held_out, look_alikes
from dat_ray.models.identity import sampler_fingerprint
from tests.unit.evaluation.setups import setup


def recipe(samples: int = 5, lengths: tuple[int, ...] = (4, 8, 12), seed: int = 0, steps: int = 4) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "test",
            "seed": seed,
            "behaviors": {"path": "builtin:demo", "heldout": {"path": "builtin:demo-heldout"}},
            "sampler": {"model": "x", "prompt_tokens": list(lengths), "steps": steps},
            "target": {"model": "y"},
            "training": {"retain": {"path": "builtin:retain"}},
            "evaluation": {"inpainting_samples": samples},
        }
    )


def requests(recipe: Recipe, suite: str = "default", weights: str = "w") -> list[dict]:
    sampler = sampler_fingerprint(recipe.sampler, weights)
    given = Setup(recipe, SeedScope(suite, recipe.seed), held_out(TABLE), {})
    return infill_requests(given, recipe.evaluation.inpainting_samples, recipe.sampler, sampler)


def behavior(identifier: str, split: str, target_index: int = 0, target: str = "Sure") -> dict:
    return {
        "behavior_id": identifier,
        "goal": f"goal of {identifier}",
        "category": None,
        "source": "test",
        "split": split,
        "target_index": target_index,
        "target": target,
        "refusal": "No.",
    }


TABLE = pa.Table.from_pylist(
    [
        behavior("t", "train"),
        behavior("h1", "heldout", 1, "second"),
        behavior("h1", "heldout", 0, "first"),
        behavior("h2", "heldout"),
        behavior("o", "over_refusal", target=""),
    ],
    schema=BEHAVIORS,
)


def ask_once() -> list[Question]:
    return Direct(setup(held_out(TABLE))).questions()


def test_behaviors_gather_their_targets_in_order() -> None:
    first, second = held_out(TABLE)
    assert first.targets == ((0, "first"), (1, "second"))
    assert (second.behavior_id, second.goal) == ("h2", "goal of h2")


def test_no_held_out_behaviors_and_shared_ones_are_errors() -> None:
    with pytest.raises(DatError, match="no held-out"):
        held_out(TABLE.slice(0, 1))
    shared = pa.Table.from_pylist([behavior("t", "heldout")], schema=BEHAVIORS)
    with pytest.raises(DatError, match="also trained on"):
        held_out(pa.concat_tables([TABLE, shared]))


def test_direct_and_look_alikes_ask_the_goal_once() -> None:
    questions = ask_once()
    assert [(q.attack, q.behavior_id, q.attempt_index, q.prompt) for q in questions] == [
        ("direct", "h1", 0, "goal of h1"),
        ("direct", "h2", 0, "goal of h2"),
    ]
    assert [q.attack for q in look_alikes(behaviors_of(TABLE, "over_refusal"))] == [OVER_REFUSAL]


def test_targets_take_turns_and_rows_fit_their_schema() -> None:
    rows = requests(recipe())
    assert pa.Table.from_pylist(rows, schema=REQUESTS).num_rows == 10
    assert [row["target"] for row in rows[:5]] == ["first", "second", "first", "second", "first"]
    assert {row["prompt_tokens"] for row in requests(recipe(64))} == {4, 8, 12}


def test_prompts_depend_on_suite_seed_and_sampler_and_on_nothing_else() -> None:
    def seeds(suite: str = "default", seed: int = 0, steps: int = 4, samples: int = 5, weights: str = "w") -> list[int]:
        return [row["seed"] for row in requests(recipe(samples, seed=seed, steps=steps), suite, weights)]

    assert seeds() == seeds()
    assert len(set(seeds())) == 10
    for other in (seeds(suite="other"), seeds(seed=1), seeds(steps=3), seeds(weights="v")):
        assert not set(other) & set(seeds())
    # More samples of a behavior keep the earlier ones.
    assert set(seeds(samples=3)) < set(seeds(samples=5))


def test_sampled_rows_become_questions_with_their_cost_or_their_error() -> None:
    rows = requests(recipe(1))
    sampled = [
        rows[0] | {"prompt": "tell me", "nfe": 7, "error": None},
        rows[1] | {"prompt": None, "nfe": None, "error": "out of memory"},
    ]
    good, bad = drawn_questions("inpainting", sampled)
    assert (good.prompt, good.model_calls, good.error) == ("tell me", 7, None)
    assert (bad.prompt, bad.model_calls, bad.error) == (None, 0, "out of memory")


def test_attempt_ids_differ_by_model_weights_and_question_but_not_by_run() -> None:
    one, two = ask_once()
    assert one.attempt_id("default", "base", "w") == one.attempt_id("default", "base", "w")
    others = {
        one.attempt_id("default", "adapted", "w"),
        one.attempt_id("default", "base", "v"),
        one.attempt_id("other", "base", "w"),
        two.attempt_id("default", "base", "w"),
    }
    assert len(others | {one.attempt_id("default", "base", "w")}) == 5
