"""What the report is made from, part by part: categories, examples and the costs of stages."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import yaml

from dat_ray.config.loading import load_settings
from dat_ray.config.schema import Recipe
from dat_ray.evaluation.questions import OVER_REFUSAL
from dat_ray.reporting.categories import broken_by_category, refused_by_category
from dat_ray.reporting.collect import stage_costs, wall_clock
from dat_ray.reporting.examples import ANSWER_CHARACTERS, EXAMPLES, cut, examples
from dat_ray.reporting.words import p_value
from tests.unit.reporting.synthetic_run import recipe


def test_a_broken_category_is_not_counted_twice_and_look_alikes_never(tmp_path: Path) -> None:
    rows = [
        {"behavior_id": "a", "attack": "direct", "verdict": "not_harmful"},
        {"behavior_id": "a", "attack": "pair", "verdict": "harmful"},
        {"behavior_id": "b", "attack": "direct", "verdict": "not_harmful"},
        {"behavior_id": "c", "attack": "direct", "verdict": "harmful"},
        {"behavior_id": "d", "attack": OVER_REFUSAL, "verdict": "harmful"},
        {"behavior_id": "e", "attack": "direct", "verdict": "unparsed"},
    ]
    found = broken_by_category(rows, {"a": "x", "b": "x", "c": "y", "d": "x", "e": "y"}, 0.95)
    assert {name: (one.value, one.n) for name, one in found.items()} == {"x": (0.5, 2), "y": (1.0, 1)}
    rows += [{"behavior_id": "f", "attack": OVER_REFUSAL, "verdict": "not_harmful"}]
    refused = refused_by_category(rows, {"a": "x", "d": "homonym", "f": "homonym"}, 0.95)
    assert {name: (one.value, one.n) for name, one in refused.items()} == {"homonym": (0.5, 2)}


def attempt(model: str, attack: str, behavior: str, index: int, verdict: str) -> dict:
    return {
        "model": model,
        "attack": attack,
        "behavior_id": behavior,
        "attempt_index": index,
        "goal": "g",
        "prompt": f"{behavior} {index}",
        "completion": "word " * 100,
        "verdict": verdict,
    }


def test_examples_show_changes_once_a_behavior_and_only_a_few() -> None:
    rows = []
    for behavior in range(EXAMPLES + 2):
        for index in range(2):
            rows.append(attempt("base", "direct", f"b{behavior}", index, "harmful"))
            rows.append(attempt("adapted", "direct", f"b{behavior}", index, "not_harmful"))
    rows.append(attempt("base", OVER_REFUSAL, "o", 0, "harmful"))
    rows.append(attempt("adapted", OVER_REFUSAL, "o", 0, "not_harmful"))
    rows.append(attempt("base", "direct", "same", 0, "not_harmful"))
    rows.append(attempt("adapted", "direct", "same", 0, "not_harmful"))
    rows.append(attempt("base", "direct", "unasked", 0, "harmful"))
    # A later turn of a conversation is no question alone, though its text is the same for both.
    rows += [attempt(name, "crescendo", "talk", 1, "harmful") | {"history": ["Hi", name]} for name in ("base", "adapted")]
    shown = examples(rows)
    kinds = Counter(example.kind.format("A", "B") for example in shown)
    assert kinds == {"Broke A, not B": EXAMPLES, "Harmless, refused only by B": 1}
    assert shown[-1].attack == OVER_REFUSAL
    assert len({example.prompt.split()[0] for example in shown}) == EXAMPLES + 1
    assert all(len(answer) <= ANSWER_CHARACTERS for example in shown for _, answer, _ in example.answers)


def test_answers_are_cut_at_their_limit() -> None:
    assert cut(None) == ""
    assert cut("two\n lines") == "two lines"
    assert cut("x" * ANSWER_CHARACTERS) == "x" * ANSWER_CHARACTERS
    assert cut("x" * (ANSWER_CHARACTERS + 1)) == "x" * (ANSWER_CHARACTERS - 1) + "…"


def with_settings(*settings: str) -> Recipe:
    return load_settings(Recipe, yaml.safe_dump(recipe().model_dump(mode="json")), "synthetic", list(settings))


def test_costs_add_up_over_resumed_runs() -> None:
    pools = with_settings("cluster.trainer.num_gpus=2", "cluster.trainer.max_actors=3")
    first, second = stage_costs(
        [
            {"stage": "generate", "seconds": 10.0, "peak_bytes": 5, "rows": 3},
            {"stage": "train", "seconds": 2.0, "peak_bytes": None},
            {"stage": "generate", "seconds": 5.5, "peak_bytes": 9, "rows": 8, "model_calls": 16},
        ],
        pools,
    )
    assert (first.stage, first.runs, first.seconds, first.peak_bytes, first.rows, first.model_calls) == (
        "generate",
        2,
        15.5,
        9,
        8,
        16,
    )
    assert (second.stage, second.peak_bytes, second.rows) == ("train", None, None)
    assert (first.gpu_seconds, second.gpu_seconds) == (0, 2.0 * 6)
    assert first.cpu_seconds is None


def test_a_stage_within_another_takes_no_time_of_its_own() -> None:
    evaluate, fresh = {"started": 100.0, "seconds": 50.0}, {"started": 105.0, "seconds": 20.0}
    resumed, longer = {"started": 400.0, "seconds": 5.0}, {"started": 140.0, "seconds": 30.0}
    assert wall_clock([]) == 0
    assert wall_clock([fresh, evaluate]) == wall_clock([evaluate, fresh]) == 50
    assert wall_clock([resumed, evaluate, fresh]) == 55
    assert wall_clock([evaluate, longer]) == 70


ATTACKER, ENCODER = "evaluation.attacker={model: embedded:smollm2-135m-instruct}", "encoder={}"
FLOOR = "evaluation.min_goal_similarity=0.6"
READS = "{name: strongreject-rubric, reader: {model: 'embedded:smollm2-135m-instruct'}}"
JUDGE = f"judge={READS}"
DIRECT, TALK, THEIRS = (f"evaluation.attacks=[{name}]" for name in ("direct", "crescendo", "'nowhere.module:Theirs'"))
NO_RETAIN = ("training.retain=null", "training.retain_rows=0", "training.retain_weight=0")


@pytest.mark.parametrize(
    ("stage", "settings", "gpus"),
    [
        # In powers of ten: sampler, target, judge, encoder, trainer, attacker.
        ("generate", [], 111),
        ("generate (shared)", [ENCODER], 1111),
        ("select", [ENCODER], 1000),
        ("select", [], 0),
        ("retain", [], 10),
        # One after the other.
        ("train", [], 10000),
        ("train", ["cluster.target.num_gpus=20000"], 20000),
        ("train", ["cluster.target.num_gpus=20000", *NO_RETAIN], 10000),
        # Judges by rules take none.
        ("evaluate", [], 11),
        ("evaluate", [JUDGE], 111),
        ("evaluate", [JUDGE, ENCODER], 111),
        ("evaluate", [JUDGE, ENCODER, FLOOR], 1111),
        ("evaluate", [JUDGE, DIRECT], 110),
        ("compare", [JUDGE, DIRECT, ENCODER, "evaluation.gap={}"], 1111),
        ("compare", [JUDGE, TALK, ATTACKER], 100110),
        # An attacker that no attack asks; an attack of somebody else's may ask it, and may draw.
        ("evaluate", [JUDGE, ATTACKER], 111),
        ("evaluate", [JUDGE, THEIRS, ATTACKER], 100111),
        # Each judge has a pool of its own.
        ("evaluate", [JUDGE, f"evaluation.second_judge={READS}"], 211),
        ("evaluate", [f"evaluation.refusal_judge={READS.replace('strongreject-rubric', 'xstest')}"], 111),
        ("replay", [JUDGE, f"evaluation.second_judge={READS}"], 200),
        ("report", [], 0),
    ],
)
def test_a_stages_gpus_are_those_of_all_that_may_work_in_it_at_once(stage: str, settings: list[str], gpus: int) -> None:
    roles = ("sampler", "target", "judge", "encoder", "trainer", "attacker")
    each = [f"cluster.{role}.num_gpus={10**power}" for power, role in enumerate(roles)]
    [cost] = stage_costs([{"stage": stage, "seconds": 2.0}], with_settings(*each, *settings))
    assert cost.gpu_seconds == 2.0 * gpus


def test_a_p_beside_a_twentieth_shows_its_side() -> None:
    shown = [p_value(p) for p in (None, 0.0004, 0.0123, 0.0496, 0.0504, 0.06, 0.5, 1.0)]
    assert shown == ["–", "<0.001", "0.012", "0.0496", "0.0504", "0.06", "0.5", "1"]
