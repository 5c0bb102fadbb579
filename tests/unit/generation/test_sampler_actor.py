"""The sampler's actor, around a real torch sampler of a tiny published checkpoint."""

from __future__ import annotations

import pytest

from dat_ray.config.schema import Recipe
from dat_ray.engines.factory import build_sampler
from dat_ray.engines.roles import Engines
from dat_ray.generation.actors import RemoteLedger, SamplerActor
from dat_ray.models.identity import sampler_fingerprint, weights_of
from dat_ray.models.samplers import resolve_sampler
from tests.unit.models.published import write_checkpoint


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    root = tmp_path_factory.mktemp("sampler")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DAT_CACHE", str(root / "cache"))
        write_checkpoint(root / "LLaDA-8B-Base", "llada")
        return resolve_sampler(str(root / "LLaDA-8B-Base"))


def actor(folder: str, samples: int) -> SamplerActor:
    recipe = Recipe.model_validate(
        {
            "name": "t",
            "behaviors": {"path": "x", "heldout": {"path": "x"}},
            "sampler": {"model": folder, "backend": "torch", "dtype": "float32", "prompt_tokens": [1, 4], "steps": 2,
                        "likelihood_samples": samples},
            "target": {"model": "m"},
            "training": {"retain": {"path": "x"}},
        }
    )  # fmt: skip
    made = SamplerActor(recipe, Engines(), RemoteLedger(None), None)
    made.engine = build_sampler(recipe.sampler, threads=1)
    return made


def rows() -> list[dict]:
    return [
        {"candidate_id": f"c{i}", "target": "Sure, here", "other_target": other, "prompt_tokens": length, "seed": i}
        for i, (length, other) in enumerate([(4, "The fox jumps"), (1, "The fox jumps"), (4, None)])
    ]


def test_a_row_says_with_which_weights_its_prompt_was_drawn(folder):
    made = actor(folder, 0)
    weights = weights_of(folder)
    assert weights is not None
    assert {row["sampler"] for row in made.work(rows())} == {sampler_fingerprint(made.recipe.sampler, weights)}


def test_likelihoods_are_stored_when_they_are_asked_for(folder):
    plain, found = actor(folder, 0).work(rows()), actor(folder, 6).work(rows())
    assert [row["prompt"] for row in found] == [row["prompt"] for row in plain]
    assert all(set(row) == {"prompt", "nfe", "sample_logprob", "sampler"} for row in plain)
    assert all(row["log_likelihood"] < 0 for row in found)
    assert [row["log_likelihood_error"] > 0 for row in found] == [True, False, True]
    assert [row.get("other_log_likelihood") is None for row in found] == [False, False, True]
    assert found[0]["other_log_likelihood"] != found[0]["log_likelihood"]
    alone = actor(folder, 6).work(rows()[:1])
    assert alone[0]["log_likelihood"] == pytest.approx(found[0]["log_likelihood"], abs=1e-3)


def test_a_one_token_prompt_drawn_in_full_view_of_its_response_has_the_likelihood_it_was_drawn_with(folder):
    """Without re-masking, one mask is filled in one step from the canvas that the likelihood is computed on."""
    made = actor(folder, 4)
    made.engine = build_sampler(made.recipe.sampler.model_copy(update={"remask_condition": False}), threads=1)
    (found,) = made.work(rows()[1:2])
    assert found["log_likelihood"] == pytest.approx(found["sample_logprob"], abs=1e-4)
