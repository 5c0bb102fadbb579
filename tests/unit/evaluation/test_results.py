"""metrics.json by its model: what every version wrote still loads, what is damaged is one line, and nobody reads it otherwise."""

from __future__ import annotations

import ast
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

import dat_ray
from dat_ray.errors import ShardError
from dat_ray.evaluation.estimates import Benchmark
from dat_ray.evaluation.results import METRICS, Metrics, load_metrics, part_json, store_metrics
from dat_ray.measures.intervals import Interval
from tests.unit.evaluation import metrics_page

OLD = Path(__file__).parents[2] / "fixtures" / "run_0_1" / "evaluation" / "default"
PACKAGE = Path(dat_ray.__file__).parent


def tree() -> dict[str, Any]:
    """The least that a file holds: the names that other tools rely on."""
    rate = {"asr": 0.5, "low": 0.1, "high": 0.9, "n_behaviors": 2}
    model = {
        "attacks": {"direct": dict(rate)},
        "boa": rate,
        "over_refusal": {"rate": None, "low": None, "high": None},
        "utility": {},
        "target_logprob": {"mean": -1.5, "low": None, "high": None},
    }
    judge = {"name": "refusal-rules", "fingerprint": "0", "is_proxy": True}
    return {"judge": judge, "models": {"base": model}, "paired": []}


def without_missing(before: Any, after: Any) -> Any:
    """`after` without the entries of objects that `before` does not have."""
    if isinstance(before, dict):
        return {key: without_missing(before[key], after[key]) for key in after if key in before}
    return [without_missing(a, b) for a, b in zip(before, after, strict=True)] if isinstance(before, list) else after


def test_a_file_of_version_0_1_loads_and_keeps_every_number(tmp_path: Path) -> None:
    found = load_metrics(str(OLD))
    assert found.models["adapted"].attacks["inpainting"].curve[1].asr == 0.5
    assert found.sampler is not None
    assert found.sampler.diversity.similarity.value == pytest.approx(0.77381, abs=1e-5)
    assert found.replay is None
    store_metrics(str(tmp_path), found)
    before, after = (json.loads((root / METRICS).read_text()) for root in (OLD, tmp_path))
    assert without_missing(before, after) == before
    assert load_metrics(str(tmp_path)) == found


def test_the_least_that_is_promised_is_enough_and_the_rest_says_that_it_was_not_recorded() -> None:
    found = Metrics.model_validate(tree())
    assert found.models["base"].weights == "unknown"
    assert found.models["base"].attacks["direct"].curve == []
    assert (found.groups, found.disagreement, found.calibration) == ({}, None, {})
    assert (found.first, found.attacks) == ("base", ["direct"])


def test_variants_and_what_attacks_tell_are_in_the_file_where_there_are_some(tmp_path: Path) -> None:
    without = json.loads(part_json(Metrics.model_validate(tree())))
    assert "about_attacks" not in without
    assert "variants" not in without["models"]["base"]["attacks"]["direct"]
    given = tree() | {"about_attacks": {"direct": {"left_out": 2}}}
    given["models"]["base"]["attacks"]["direct"]["variants"] = {"zh": {"asr": 1.0, "low": 0.2, "high": 1.0, "n_behaviors": 1}}
    store_metrics(str(tmp_path), Metrics.model_validate(given))
    found = load_metrics(str(tmp_path))
    assert found == Metrics.model_validate(given)
    base = found.models["base"]
    assert (base.rate_of("direct"), base.rate_of("direct", "zh")) == (Interval(0.5, 0.1, 0.9, 2), Interval(1.0, 0.2, 1.0, 1))
    assert base.rate_of("direct", "it") is base.rate_of("pair", "zh") is None
    assert (found.variants("direct"), found.variants("pair")) == (["zh"], [])


@pytest.mark.parametrize(
    "path",
    [
        ("judge",), ("judge", "name"), ("judge", "is_proxy"), ("models",), ("models", "base", "attacks", "direct", "asr"),
        ("models", "base", "attacks", "direct", "n_behaviors"), ("models", "base", "boa"), ("models", "base", "boa", "low"),
        ("models", "base", "over_refusal", "rate"), ("models", "base", "utility"), ("models", "base", "target_logprob"),
        ("paired",),
    ],
)  # fmt: skip
def test_what_is_promised_and_missing_is_one_line_with_its_place(path: tuple[str, ...], tmp_path: Path) -> None:
    damaged = inner = tree()
    for step in path[:-1]:
        inner = inner[step]
    del inner[path[-1]]
    (tmp_path / METRICS).write_text(json.dumps(damaged))
    with pytest.raises(ShardError) as caught:
        load_metrics(str(tmp_path))
    assert f"{'.'.join(path)}: Field required" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", ["0.5", True, [0.5], {"value": 0.5}])
def test_another_type_is_no_number(value: object, tmp_path: Path) -> None:
    damaged = tree()
    damaged["models"]["base"]["boa"]["asr"] = value
    (tmp_path / METRICS).write_text(json.dumps(damaged))
    with pytest.raises(ShardError, match=r"models\.base\.boa\.asr"):
        load_metrics(str(tmp_path))


def test_what_a_newer_version_adds_is_passed_over_at_every_depth() -> None:
    newer = tree()
    for part in (newer, newer["judge"], newer["models"]["base"], newer["models"]["base"]["attacks"]["direct"]):
        part["of_next_year"] = {"a": [1]}
    assert Metrics.model_validate(newer) == Metrics.model_validate(tree())


def test_a_measurement_that_is_no_number_stays_one() -> None:
    text = part_json(Benchmark(value=math.nan, low=None, high=None, stderr=math.inf))
    back = Benchmark.model_validate(json.loads(text))
    assert math.isnan(back.value)
    assert back.stderr == math.inf


def test_metrics_are_not_changed_in_place() -> None:
    found = Metrics.model_validate(tree())
    with pytest.raises(ValidationError, match="frozen"):
        found.models["base"].boa.asr = 0.0  # type: ignore[misc]  # frozen: it is what is tested


def test_one_module_alone_opens_the_file() -> None:
    """Others have it typed, so that mypy sees every name that is read: a string key would be no attribute."""
    readers = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and node.value == METRICS:
                readers.add(str(path.relative_to(PACKAGE)))
    assert readers == {"evaluation/results.py"}


def test_the_report_of_a_damaged_file_names_it(tmp_path: Path) -> None:
    shutil.copy(OLD / METRICS, tmp_path / METRICS)
    (tmp_path / METRICS).write_text((tmp_path / METRICS).read_text()[:-20])
    with pytest.raises(ShardError, match="metrics"):
        load_metrics(str(tmp_path))


def test_the_page_of_the_fields_is_that_of_the_model() -> None:
    assert metrics_page.PAGE.read_text(encoding="utf-8") == metrics_page.page(), "python -m tests.unit.evaluation.metrics_page"
