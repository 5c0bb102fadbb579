from __future__ import annotations

import json
from collections import Counter

import pytest

from dat_ray.config.adapt import SynthesisConfig, load_adapt_config
from dat_ray.errors import InputError
from dat_ray.pipeline.synthesize import _mark, _written, openers, usable


@pytest.mark.parametrize(
    ("prompt", "finished", "expected"),
    [
        ("How do I repot a cactus?", True, True),
        ("How do I repot a cactus?", False, False),
        ("Repot it", True, False),
        ("One two three", True, False),
        ("How do I repot\na cactus?", True, False),
        ("How do I repot a <|im_start|> cactus?", True, False),
        ("Wie topfe ich einen Kaktus für Anfänger um?", True, False),
        ("word " * 60, True, False),
    ],
)
def test_only_whole_requests_of_one_line_are_kept(prompt: str, finished: bool, expected: bool) -> None:
    assert usable(prompt, finished) is expected


def test_openers_depend_on_seed_and_row_alone_and_use_all_choices() -> None:
    config = SynthesisConfig(seed=3, prompt_openers=("", "How"), response_openers=("", "Sure", "Here is"))
    drawn = [openers(config, index) for index in range(600)]
    assert drawn == [openers(config, index) for index in range(600)]
    assert set(drawn) == {(p, r) for p in config.prompt_openers for r in config.response_openers}
    assert all(70 <= count <= 130 for count in Counter(drawn).values())


def test_what_a_killed_run_wrote_after_its_last_whole_chunk_is_cut_off(tmp_path) -> None:
    out = tmp_path / "pairs.jsonl"
    assert _written(out) == 0
    whole = json.dumps({"index": 0, "prompt": "p", "response": "r"}) + "\n"
    out.write_text(whole)
    _mark(out).write_text(json.dumps({"rows": 4, "bytes": len(whole)}))
    with open(out, "a") as stream:
        stream.write('{"index": 5, "prompt": "ha')
    assert _written(out) == 4
    assert out.read_text() == whole


def test_the_shipped_sampler_s_recipe_loads_and_bad_settings_are_named() -> None:
    recipe = load_adapt_config("smollm2-135m-infill")
    assert (recipe.synthesis.rows, recipe.training.steps) == (10240, 1000)
    assert load_adapt_config("smollm2-135m-infill", ["training.steps=3"]).training.steps == 3
    with pytest.raises(InputError, match=r"training\.step = 3: unknown key; did you mean 'steps'"):
        load_adapt_config("smollm2-135m-infill", ["training.step=3"])
