"""A study's primary measure is looked for before anything starts, not after hours of training."""

from __future__ import annotations

import pytest

from dat_ray.config.study import read_study
from dat_ray.devices import GPUS
from dat_ray.errors import InputError
from dat_ray.evaluation.registry import check_primary
from dat_ray.pipeline import study as studying
from dat_ray.planning.study_plan import study_parts


@pytest.mark.parametrize(
    "name",
    [
        "boa",
        "over_refusal",
        "over_refusal_inpainted",
        "direct",
        "prompts_rewrites",
        "prompts_rewrites/spanish",
        "prompts_rewrites:share",
    ],
)
def test_what_a_suite_measures_may_be_primary(name: str) -> None:
    check_primary(read_study("demo-arms", [f"primary={name}"]))


@pytest.mark.parametrize(
    "name", ["asr", "gcg", "over_refusal_inpainted", "spanish", "direct:share", "prompts_rewrites/indirect:share"]
)
def test_what_none_measures_is_named_before_anything_starts(name: str) -> None:
    study = read_study("demo-arms", [f"primary={name}", "settings.behaviors.harmless_heldout=null"])
    for look in (check_primary, studying._check_inputs, lambda plan: study_parts(plan, GPUS["h100"])):
        with pytest.raises(
            InputError, match=f"primary = '{name}': no suite measures it: choose one of boa, over_refusal, direct"
        ):
            look(study)
