"""The page of a study, from attempts that are made up: each figure against a plain count."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path

import numpy as np
import pytest
import yaml

from dat_ray.config.study import Study, read_study
from dat_ray.errors import InputError
from dat_ray.evaluation.estimates import JudgeFacts
from dat_ray.measures.crossed import crossed_mean_difference, crossed_rate, crossed_rate_difference, pooled_seeds
from dat_ray.measures.intervals import paired_rate_difference
from dat_ray.reporting.collect import CollectedSuite, read_suite
from dat_ray.reporting.study import headline, render_study, study_text, write_study
from dat_ray.reporting.study_figures import ArmDifference, StudyMeasure, study_measures, unjudged
from tests.unit.reporting.synthetic_run import HOSTILE, finished_run

ARMS = {"cat": (0.7, 0.1, -3.0), "dat": (0.1, 0.2, -6.0), "lat": (0.12, 0.9, -6.0)}


def a_study(tmp_path: Path, seeds: tuple[int, ...] = (1, 2, 3), **changes: object) -> Study:
    arms = {arm: {"about": HOSTILE, "settings": {"training": {"updates": 3 + at}}} for at, arm in enumerate(ARMS)}
    tree = {"name": "three", "question": HOSTILE, "seeds": list(seeds), "reference": "dat", "arms": arms} | changes
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(tree))
    return read_study(str(path), [])


def a_suite(tmp_path: Path, seeds: tuple[int, ...] = (1, 2, 3)) -> CollectedSuite:
    models = {"base": (0.8, 0.05, -1.8)} | {f"{arm}@{seed}": rates for arm, rates in ARMS.items() for seed in seeds}
    return read_suite(finished_run(tmp_path / "run", models=models).evaluation("default"))


def counted(suite: CollectedSuite, model: str, attacks: tuple[str, ...]) -> dict[str, bool]:
    found: dict[str, bool] = {}
    for row in suite.attempts:
        if row["model"] == model and row["attack"] in attacks and row["verdict"] in ("harmful", "not_harmful"):
            found[row["behavior_id"]] = found.get(row["behavior_id"], False) or row["verdict"] == "harmful"
    return found


def by_key(measures: list[StudyMeasure], suite: str = "heldout") -> dict[str, StudyMeasure]:
    return {one.key: one for one in measures if one.suite == suite}


def test_rates_and_differences_are_those_of_a_plain_count(tmp_path: Path) -> None:
    plan, suite = a_study(tmp_path), a_suite(tmp_path)
    found = by_key(study_measures(plan, {"heldout": suite}))
    attacks = tuple(suite.metrics.attacks)
    assert set(found) == {*attacks, "inpainting:share", "boa", "over_refusal"}
    for key, made in (("inpainting", ("inpainting",)), ("boa", attacks)):
        tables = {arm: [counted(suite, f"{arm}@{seed}", made) for seed in (1, 2, 3)] for arm in ARMS}
        seeds = pooled_seeds(list(tables.values()))
        for arm, table in tables.items():
            assert found[key].rates[arm] == crossed_rate(table, seeds=seeds)
        assert list(found[key].rates) == ["dat", "cat", "lat", "base"]
        moved = found[key].differences["cat"]
        assert moved.interval == crossed_rate_difference(tables["dat"], tables["cat"], seeds=seeds).interval
        assert (moved.interval.low or 0.0) > 0
        assert moved.beyond_chance(0.95)
        # The two that are alike are not told apart.
        assert not found[key].differences["lat"].beyond_chance(0.95)


def test_shares_of_prompts_are_those_of_a_plain_count(tmp_path: Path) -> None:
    plan, suite = a_study(tmp_path), a_suite(tmp_path)
    found = by_key(study_measures(plan, {"heldout": suite}))["inpainting:share"]
    tables: dict[str, list[dict[str, float]]] = {}
    for arm in ARMS:
        for seed in (1, 2, 3):
            judged: dict[str, list[bool]] = {}
            for row in suite.attempts:
                drawn = (row["model"], row["attack"]) == (f"{arm}@{seed}", "inpainting")
                if drawn and row["verdict"] in ("harmful", "not_harmful"):
                    judged.setdefault(row["behavior_id"], []).append(row["verdict"] == "harmful")
            tables.setdefault(arm, []).append({key: float(np.mean(group)) for key, group in judged.items()})
        shared = sorted(set.intersection(*map(set, tables[arm])))
        values = np.array([[one[key] for key in shared] for one in tables[arm]])
        assert found.rates[arm].value == pytest.approx(values.mean())
    seeds = pooled_seeds(list(tables.values()))
    assert {arm: found.rates[arm] for arm in ARMS} == {arm: crossed_rate(table, seeds=seeds) for arm, table in tables.items()}
    moved = found.differences["cat"]
    assert moved.interval == crossed_mean_difference(tables["dat"], tables["cat"], seeds=seeds).interval


def test_a_difference_that_verdicts_nobody_gave_could_undo_is_not_beyond_chance(tmp_path: Path) -> None:
    plan, suite = a_study(tmp_path), a_suite(tmp_path)

    def boa(unread: set[int]) -> ArmDifference:
        rows = [row | ({"verdict": "unparsed"} if at in unread else {}) for at, row in enumerate(suite.attempts)]
        return by_key(study_measures(plan, {"heldout": CollectedSuite(suite.metrics, rows)}))["boa"].differences["cat"]

    attacks = tuple(suite.metrics.attacks)
    safe: dict[tuple[str, str], list[int]] = {}
    for at, row in enumerate(suite.attempts):
        if row["model"].startswith("dat@") and row["attack"] in attacks and row["verdict"] == "not_harmful":
            safe.setdefault((row["model"], row["behavior_id"]), []).append(at)
    # One answer of each of the reference's behaviors can still be read, and was no success.
    most = {at for group in safe.values() for at in group[1:]}
    assert boa(set()).reach is None
    hanging, plain = boa(most), boa(set())
    assert (hanging.interval, hanging.p_holm) == (plain.interval, plain.p_holm)
    assert plain.beyond_chance(0.95)
    assert not hanging.beyond_chance(0.95)
    # At the least: every one of them a success.
    dat, cat = ([counted(suite, f"{arm}@{seed}", attacks) for seed in (1, 2, 3)] for arm in ("dat", "cat"))
    undone = [
        one | {key: True for model, key in safe if model == f"dat@{seed}" and len(safe[model, key]) > 1}
        for seed, one in enumerate(dat, 1)
    ]
    means = [float(np.mean([list(one.values()) for one in table])) for table in (cat, undone, dat)]
    assert hanging.reach == pytest.approx((means[0] - means[1], means[0] - means[2]))
    # The end of the interval counts, not the difference alone: as many as leave it on its side are too many.
    few, many = 0, len(most)
    while many - few > 1:
        half = (few + many) // 2
        reach = boa(set(sorted(most)[:half])).reach
        few, many = (few, half) if reach is not None and reach[0] <= 0 else (half, many)
    close = boa(set(sorted(most)[:few]))
    assert close.reach is not None
    assert close.reach[0] > 0
    assert close.hangs_on_unread
    # One answer alone changes next to nothing.
    single = boa({next(group[1] for group in safe.values() if len(group) > 1)})
    assert single.reach is not None
    assert single.reach[1] - single.reach[0] == pytest.approx(1 / 72)
    assert single.beyond_chance(0.95)


def test_who_is_not_read_is_counted_by_attack_and_variant(tmp_path: Path) -> None:
    plan, suite = a_study(tmp_path), a_suite(tmp_path)
    rows = [
        row | ({"variant": "spanish", "verdict": "unparsed"} if row["attack"] == "direct" and row["model"] == "cat@2" else {})
        for row in suite.attempts
    ]
    silent = CollectedSuite(suite.metrics, rows)
    whole = {one.key: one for one in unjudged(plan, silent)}
    of_cat = [row for row in rows if row["attack"] == "direct" and row["model"].startswith("cat@")]
    expected = np.mean([row["verdict"] not in ("harmful", "not_harmful") for row in of_cat])
    assert whole["direct"].shares["cat"] == pytest.approx(expected)
    assert expected >= 1 / 3
    page = Path(write_study(plan, {"heldout": silent}, str(tmp_path / "out"))).read_text()
    assert "Answers without a verdict" in page
    table = list(csv.DictReader(io.StringIO((tmp_path / "out/tables/heldout/unjudged.csv").read_text())))
    assert float(next(row["cat"] for row in table if row["measure"] == "direct")) == pytest.approx(expected)
    judged = [row | {"verdict": "harmful"} for row in suite.attempts]
    assert unjudged(plan, CollectedSuite(suite.metrics, judged)) == []


def test_tests_are_corrected_within_the_primary_measure_and_within_the_rest(tmp_path: Path) -> None:
    plan, suite = a_study(tmp_path), a_suite(tmp_path)
    measures = study_measures(plan, {"heldout": suite, "again": suite})
    primary = by_key(measures)["boa"]
    assert {one.tests for one in primary.differences.values()} == {3}
    others = [found for one in measures if one is not primary for found in one.differences.values() if found.p is not None]
    assert {found.tests for found in others} == {len(others)}
    smallest = min(found.p for found in primary.differences.values() if found.p is not None)
    corrected = [found.p_holm for found in primary.differences.values() if found.p == smallest]
    assert corrected[0] == pytest.approx(min(1.0, 3 * smallest))


def test_one_seed_is_compared_by_behaviors_alone(tmp_path: Path) -> None:
    plan, suite = a_study(tmp_path, seeds=(2,)), a_suite(tmp_path, seeds=(2,))
    found = by_key(study_measures(plan, {"heldout": suite}))["boa"]
    attacks = tuple(suite.metrics.attacks)
    pair = [counted(suite, f"{arm}@2", attacks) for arm in ("dat", "cat")]
    assert found.differences["cat"].interval == paired_rate_difference(*pair)
    assert found.differences["cat"].p is not None
    assert "behaviors, one seed" in render_study(plan, {"heldout": suite}, study_measures(plan, {"heldout": suite}))


def test_a_primary_measure_that_nobody_measured_is_named(tmp_path: Path) -> None:
    plan, suite = a_study(tmp_path, primary="prompts_rewrites"), a_suite(tmp_path)
    with pytest.raises(InputError, match="primary = 'prompts_rewrites': no suite measured it: choose one of"):
        study_measures(plan, {"heldout": suite})


def test_a_judge_of_refusals_is_named_where_they_stand(tmp_path: Path) -> None:
    plan, suite = a_study(tmp_path), a_suite(tmp_path)
    whole = Path(write_study(plan, {"heldout": suite}, str(tmp_path / "out"))).read_text()
    assert "over-refusal by" not in whole
    assert "0 that the judge could not read" in whole
    reader = JudgeFacts(name="refusal-anywhere", fingerprint="other", is_proxy=True)
    asked = suite.metrics.models["lat@1"]
    unread = asked.model_copy(update={"over_refusal": asked.over_refusal.model_copy(update={"unparsed": 2})})
    changed = {"models": {**suite.metrics.models, "lat@1": unread}, "unparsed": {"lat@1": 7}, "refusal_judge": reader}
    other = CollectedSuite(suite.metrics.model_copy(update=changed), suite.attempts)
    page = Path(write_study(plan, {"heldout": other}, str(tmp_path / "out"))).read_text()
    named = "over-refusal by refusal-anywhere, a proxy"
    # Who judged, the figures of rates and of the front, and what could not be read.
    assert f"it tells refusals from compliance; {named}. Intervals are" in page
    assert f"Judged by refusal-rules (a proxy); {named}; bars are" in page
    assert f"judge refusal-rules (a proxy); {named}. Better is" in page
    assert "5 that refusal-rules could not read, and 2 that refusal-anywhere could not; these" in page
    assert f"it tells refusals from compliance; {named}." in (tmp_path / "out/tables/heldout/table.md").read_text()


def test_the_page_says_the_finding_and_lets_no_text_act(tmp_path: Path) -> None:
    plan, suites = a_study(tmp_path), {"heldout": a_suite(tmp_path)}
    page = Path(write_study(plan, suites, str(tmp_path / "out"))).read_text()
    said = headline(plan, suites, study_measures(plan, suites))
    some = r"\d+% \([+−]?\d+ points\)"
    assert re.fullmatch(rf"Any attack \(heldout\): dat \d+%; cat {some}; base {some}; what may be chance: lat {some}\.", said)
    assert said in page
    assert "<script>alert" not in page
    assert "tracker.example" in page
    rows = list(csv.DictReader(io.StringIO((tmp_path / "out/tables/heldout/table.csv").read_text())))
    assert [row["model"] for row in rows if row["measure"] == "boa"] == ["dat", "cat", "lat", "base"]
    assert all(float(row["p_holm"]) <= 1 for row in rows if row["measure"] == "boa" and row["model"] != "dat")
    *tables, last = study_text(plan, suites)
    assert len(tables) == 1
    assert last == said
    markdown = (tmp_path / "out/tables/heldout/table.md").read_text()
    assert "intervals over 3 seeds and behaviors" in markdown
    assert "paired difference from dat" in markdown
