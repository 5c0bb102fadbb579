"""The distribution gap on the pages and in the tables, from scored prompts that are made up."""

from __future__ import annotations

import csv
import io
import random
import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from dat_ray.config.evaluation import GapConfig
from dat_ray.evaluation.gap_metrics import distribution_gap, risk_by_behavior
from dat_ray.evaluation.results import Metrics, load_metrics, store_metrics
from dat_ray.measures.gaps import gap_between, gap_seeds
from dat_ray.measures.intervals import Interval
from dat_ray.reporting.charts import Figure
from dat_ray.reporting.closing import closing
from dat_ray.reporting.collect import CollectedSuite
from dat_ray.reporting.figures import PERCENT, Dot, DotRow, dot_plot, number_ruler
from dat_ray.reporting.gap_page import gap_figures, gap_section
from dat_ray.reporting.gap_values import GapView, run_gap
from dat_ray.reporting.stage import report
from dat_ray.reporting.study import render_study, study_text, write_study
from dat_ray.reporting.study_figures import study_measures
from dat_ray.reporting.study_gap import study_gap
from dat_ray.reporting.tables import as_csv, comparison
from dat_ray.reporting.terminal import TerminalTable
from tests.unit.reporting.synthetic_run import finished_run, recipe
from tests.unit.reporting.test_study import a_study, a_suite

CONFIG = GapConfig(bound=9.0)
# R of each set, of a model that resists nothing; and how far each arm pushes the sets down.
LEVELS = {"training": -2.0, "fresh_prompts": -2.0, "fresh_targets": -2.2, "rewrites": -1.5}
PUSHED = {"base": 0.0, "adapted": 5.0, "dat": 5.0, "cat": 2.0, "lat": 3.0}


def scored(model: str, seed: int) -> list[dict[str, Any]]:
    """Ten behaviors a split, two prompts each; written prompts are pushed half as far."""
    rng, rows = random.Random(seed), []
    pushed = PUSHED[model.partition("@")[0]]
    for prompt_set, level in LEVELS.items():
        split = "train" if prompt_set in ("training", "fresh_prompts") else "heldout"
        for number in range(20):
            plain = level - pushed * (0.5 if prompt_set == "rewrites" else 1.0) + rng.gauss(0, 0.5)
            rows.append(
                {
                    "model": model,
                    "prompt_set": prompt_set,
                    "behavior_id": f"{split}{number // 2}",
                    "plain": plain,
                    "attacked": plain + 1.0,
                    "is_goal": prompt_set == "training" and number == 3,
                    "error": None,
                }
            )
    return rows


def with_gap(metrics: Metrics, rows: Iterable[dict[str, Any]], steps: int = 2) -> Metrics:
    by_model = {name: [row for row in rows if row["model"] == name] for name in metrics.models}
    models = {
        name: model.model_copy(update={"gap": distribution_gap(by_model[name], CONFIG, steps, 0.95)})
        for name, model in metrics.models.items()
    }
    return metrics.model_copy(update={"models": models})


@pytest.fixture(scope="module")
def metrics(tmp_path_factory: pytest.TempPathFactory) -> Metrics:
    """Of a run with the base and the fine-tuned model, without a gap."""
    return load_metrics(finished_run(tmp_path_factory.mktemp("run")).evaluation("default"))


def gap_of(metrics: Metrics, steps: int = 2) -> Metrics:
    return with_gap(metrics, [row for at, name in enumerate(metrics.models) for row in scored(name, at)], steps)


def view_of(metrics: Metrics) -> GapView:
    found = run_gap(metrics)
    assert found is not None
    return found


def test_a_run_without_the_gap_shows_none(metrics: Metrics) -> None:
    assert run_gap(metrics) is None
    assert not [one for one in comparison(metrics).measures if one.key.startswith("gap/")]


def test_a_run_shows_what_its_metrics_hold(metrics: Metrics) -> None:
    whole = gap_of(metrics)
    view = view_of(whole)
    assert [column.name for column in view.columns] == ["base", "adapted"]
    assert view.kinds == ["plain", "attacked"]
    gap = whole.models["adapted"].gap
    assert gap is not None
    assert view.about.sets["rewrites"]["plain"] == gap.sets["rewrites"].plain.interval
    assert view.about.goals == (1, 20)
    shown = gap_section(view)
    # No value is beyond the bound, which has a line only where one is.
    assert len(shown["rows"]) == 2 * (4 + 4)
    said = " ".join(shown["sentences"])
    assert "fine-tuned 1 of 20" in said
    people = gap.gaps["people"].attacked
    assert people is not None
    assert people.low is not None
    assert f"at least {people.low / 18:.2f} apart" in said
    [measure] = [one for one in comparison(whole).measures if one.key == "gap/people/attacked"]
    assert (measure.cells[1].value, measure.cells[1].difference) == (people.gap, None)
    rows = list(csv.DictReader(io.StringIO(as_csv(comparison(whole)))))
    assert [float(row["value"]) for row in rows if (row["measure"], row["model"]) == ("gap/people/attacked", "adapted")] == [
        people.gap
    ]


def test_what_the_figures_do_not_show_is_said(metrics: Metrics) -> None:
    rows = [row for at, name in enumerate(metrics.models) for row in scored(name, at)]
    few = [row for row in rows if row["prompt_set"] != "rewrites"]
    low = [row | {"attacked": -20.0} if row["model"] == "adapted" else row for row in few]
    failed = [
        row | {"plain": None, "attacked": None, "error": "target: too long"} if at < 3 else row for at, row in enumerate(low)
    ]
    shown = gap_section(view_of(with_gap(metrics, failed)))
    said = " ".join(shown["sentences"])
    sets = ("training prompts", "fresh prompts, training targets", "fresh prompts, held-out targets")
    places = "; ".join(f"{one} under the attack of training (fine-tuned)" for one in sets)
    assert f"Most values are at the bound of ±9 nats on {places}: R cannot fall" in said
    assert [(row["name"], row["kind"], row["cells"]) for row in shown["rows"][-3:]] == [
        (f"Beyond ±9 nats: {one}", "under the attack of training", ["0%", "100%"]) for one in sets
    ]
    assert "Not measured: written prompts, held-out targets." in said
    assert "Prompts that could not be scored: base 3." in said
    plain = " ".join(gap_section(view_of(gap_of(metrics)))["sentences"])
    assert not any(one in plain for one in ("at the bound", "Not measured", "could not be scored"))


def test_the_closing_of_a_run_has_it_apart(tmp_path: Path) -> None:
    run = finished_run(tmp_path / "run")
    assert len(list(closing(run))) == 2
    store_metrics(run.evaluation("default"), gap_of(load_metrics(run.evaluation("default"))))
    _, _, gap = closing(run)
    assert isinstance(gap, TerminalTable)
    assert len(gap.rows) == 2 * (4 + 4)


def test_figures_say_the_finding_in_nats(metrics: Metrics) -> None:
    view = view_of(gap_of(metrics))
    plain, attacked, gaps = gap_figures(view)
    rewrites = view.about.sets["rewrites"]["attacked"].value
    assert rewrites is not None
    assert attacked.title.endswith(f" −{-rewrites:.2f} written prompts, held-out targets")
    assert "as they are" in plain.title
    assert "nats per token" in attacked.caption
    assert "±9" in attacked.caption
    for figure in (plain, attacked, gaps):
        assert isinstance(figure, Figure)
        assert "%</text>" not in figure.svg


def test_without_steps_of_an_attack_only_plain_is_shown(metrics: Metrics) -> None:
    view = view_of(gap_of(metrics, steps=0))
    assert view.kinds == ["plain"]
    assert len(gap_figures(view)) == 2


def test_the_report_has_a_section_of_it(tmp_path: Path, metrics: Metrics) -> None:
    run = finished_run(tmp_path / "run")
    assert "The distribution gap" not in Path(report(recipe(), run)).read_text()
    store_metrics(run.evaluation("default"), gap_of(load_metrics(run.evaluation("default"))))
    page = Path(report(recipe(), run)).read_text()
    assert page.count("The distribution gap") == 1
    assert "Written minus fresh prompts" in page


def test_a_plot_of_numbers_spans_what_it_draws() -> None:
    rows = [DotRow("r", [Dot(0, "a", -3.0, -4.2, -2.0), Dot(1, "b", None, None, None)])]
    ruler = number_ruler(rows)
    assert ruler.ticks[0] <= -4.2
    assert ruler.ticks[-1] >= -2.0
    drawn = str(dot_plot(rows, "t", "axis", ruler))
    assert "a: −3.00 [−4.20, −2.00]" in drawn
    assert number_ruler([]).ticks[0] <= 0.0 <= number_ruler([]).ticks[-1]
    assert str(dot_plot([], "t", "axis")) == str(dot_plot([], "t", "axis", PERCENT))


def a_gap_suite(tmp_path: Path, seeds: tuple[int, ...]) -> CollectedSuite:
    suite = a_suite(tmp_path, seeds)
    rows = [row for at, name in enumerate(suite.metrics.models) for row in scored(name, at)]
    return replace(suite, metrics=with_gap(suite.metrics, rows), risks=rows)


def by_seed(suite: CollectedSuite, arm: str, prompt_set: str, kind: str) -> list[dict[str, float]]:
    return [
        risk_by_behavior([row for row in suite.risks if row["model"] == f"{arm}@{seed}"], prompt_set, kind, 9.0)
        for seed in (1, 2, 3)
    ]


def test_arms_are_averaged_over_seeds_and_behaviors(tmp_path: Path) -> None:
    plan, suite = a_study(tmp_path), a_gap_suite(tmp_path, (1, 2, 3))
    view = study_gap(plan, suite, "3 seeds and behaviors")
    assert view is not None
    assert [column.name for column in view.columns] == ["dat", "cat", "lat", "base"]
    cat = view.columns[1]
    before, after = (by_seed(suite, "cat", one, "attacked") for one in ("training", "fresh_prompts"))
    # By hand: what seeds add is that of all three arms.
    sets = ("training", "fresh_prompts", "rewrites")
    arms = {arm: [by_seed(suite, arm, one, "attacked") for one in sets] for arm in ("dat", "cat", "lat")}
    seeds = gap_seeds([(own[0], own[1]) for own in arms.values()], paired=True)
    assert seeds is not None
    assert cat.gaps["new_prompts"]["attacked"] == gap_between(before, after, paired=True, seeds=seeds.mean)
    assert cat.gaps["new_prompts"]["attacked"] != gap_between(before, after, paired=True)
    held_out = by_seed(suite, "cat", "rewrites", "attacked")
    seeds = gap_seeds([(own[0], own[2]) for own in arms.values()], paired=False)
    assert seeds is not None
    assert cat.gaps["whole"]["attacked"] == gap_between(before, held_out, paired=False, seeds=seeds.mean)
    # Written prompts are pushed half as far: the gap is 0.7 and half of what the arm pushes.
    for column, pushed in zip(view.columns, (5.0, 2.0, 3.0, 0.0), strict=True):
        found = column.gaps["people"]["plain"]
        assert found.low is not None
        assert found.high is not None
        assert found.low - 0.3 < 0.7 + pushed / 2 < found.high + 0.3
    # The base model is the same under every seed.
    own = risk_by_behavior([row for row in suite.risks if row["model"] == "base"], "training", "plain", 9.0)
    assert view.columns[-1].sets["training"]["plain"].n == len(own)
    assert view.columns[-1].goals == (1, 20)
    assert cat.goals == (3, 60)


def test_what_the_bound_takes_off_a_gap_is_shown(tmp_path: Path) -> None:
    """CAT's training prompts are far below the bound: its gap is larger than the bound lets it be."""
    plan, suite = a_study(tmp_path), a_gap_suite(tmp_path, (1, 2, 3))
    risks = [
        row | {"attacked": row["attacked"] - 20} if row["model"].startswith("cat@") and row["prompt_set"] == "training" else row
        for row in suite.risks
    ]
    view = study_gap(plan, replace(suite, risks=risks), "3 seeds and behaviors")
    assert view is not None
    assert view.columns[1].clipped["training"] == {"plain": 0.0, "attacked": 1.0}
    assert view.columns[1].sets["training"]["attacked"].value == -9
    assert (view.unbounded[1].sets["training"]["attacked"].value or 0.0) < -20
    said = gap_section(view)["sentences"]
    assert any("at the bound of ±9 nats on training prompts under the attack of training (cat):" in one for one in said)
    starts = ("", "Without the bound: ")
    bounded, free = (next(one for one in said if one.startswith(f"{start}Written minus training")) for start in starts)
    assert bounded.split("cat ")[1] != free.split("cat ")[1]
    assert free.count("[") == 3


def test_a_mean_of_logarithms_has_limits_within_its_bound(tmp_path: Path) -> None:
    """Seeds that lie far apart make Student's interval go beyond what a value can be."""
    plan, suite = a_study(tmp_path), a_gap_suite(tmp_path, (1, 2, 3))
    risks = [row | {"plain": {"1": -0.2, "2": -8.9}.get(row["model"][-1], row["plain"])} for row in suite.risks]
    view = study_gap(plan, replace(suite, risks=risks), "3 seeds and behaviors")
    assert view is not None
    for column in view.columns[:-1]:
        found = column.sets["training"]["plain"]
        assert (found.low, found.high) == (-9.0, 0.0)
        assert found.value is not None


def test_an_arm_s_gap_is_held_against_the_reference_s(tmp_path: Path) -> None:
    plan, suite = a_study(tmp_path), a_gap_suite(tmp_path, (1, 2, 3))
    view = study_gap(plan, suite, "3 seeds and behaviors")
    assert view is not None
    reference, cat, *_ = view.columns
    assert (reference.moved_sets, reference.moved_gaps["whole"]) == ({}, {})
    # Each set by hand: a mean over seeds and behaviors of what both have.
    means = {}
    for one in ("training", "rewrites"):
        pairs = zip(by_seed(suite, "dat", one, "attacked"), by_seed(suite, "cat", one, "attacked"), strict=True)
        means[one] = fmean(fmean(after[key] - before[key] for key in before) for before, after in pairs)
        assert cat.moved_sets[one]["attacked"].value == pytest.approx(means[one])
    moved = cat.moved_gaps["whole"]["attacked"]
    assert moved.value == pytest.approx(means["rewrites"] - means["training"])
    own, compared = (one.gaps["whole"]["attacked"].value for one in (cat, reference))
    assert own is not None
    assert compared is not None
    assert moved.value == pytest.approx(own - compared)
    # Pairing takes out what a behavior has in both arms: the interval is no wider than that of two gaps apart.
    apart = sum(interval_width(one.gaps["whole"]["attacked"]) for one in (cat, reference))
    assert 0 < interval_width(moved) < apart
    page = Path(write_study(plan, {"heldout": suite}, str(tmp_path / "out"))).read_text()
    assert "minus training prompts under the attack of training, more than dat" in page
    assert "These intervals are not corrected for their number." in page
    assert re.search(r"under the attack of training and Any attack order 3 arms with a rank correlation of [+−]\d", page)
    rows = csv.DictReader(io.StringIO((tmp_path / "out/tables/heldout/table.csv").read_text()))
    [row] = [row for row in rows if (row["measure"], row["model"]) == ("gap/whole/attacked", "cat")]
    assert float(row["difference"]) == pytest.approx(moved.value)


def test_an_arm_s_gap_is_held_against_that_of_its_prompts_before_training(tmp_path: Path) -> None:
    plan, suite = a_study(tmp_path), a_gap_suite(tmp_path, (1, 2, 3))

    def trained_on(rows: list[dict[str, Any]], what: str, level: float = 0.0) -> list[dict[str, Any]]:
        found = []
        for at, row in enumerate(rows):
            text = f"{what} {at}" if row["prompt_set"] == "training" else "same"
            shift = level if row["prompt_set"] == "training" else 0.0
            more = {"source_id": str(at), "prompt": text, "target": "t"}
            found.append(row | more | {"plain": row["plain"] + shift, "attacked": row["attacked"] + shift})
        return found

    by_model = {name: [row for row in suite.risks if row["model"] == name] for name in suite.metrics.models}
    # The prompts of lat were 1.5 nats harder for the base model than those of dat, those of cat the same as dat's.
    arms = {
        name: trained_on(rows, name.partition("@")[0].replace("cat", "dat")) for name, rows in by_model.items() if name != "base"
    }
    for seed in (1, 2, 3):
        arms[f"lat@{seed}"] = trained_on(by_model[f"lat@{seed}"], "lat", -1.5)
    base = trained_on(by_model["base"], "dat")
    extra = [row for row in trained_on(by_model["base"], "lat", -1.5) if row["prompt_set"] == "training"]
    base += [row | {"prompt_set": "training/lat@1"} for row in extra]
    view = study_gap(plan, replace(suite, risks=[*base, *(row for rows in arms.values() for row in rows)]), "u")
    assert view is not None
    own, cat, lat, before = view.columns
    assert "by_training" not in before.gaps
    people = fmean(row["attacked"] for row in by_model["base"] if row["prompt_set"] == "rewrites")
    for column, level in ((own, 0.0), (cat, 0.0), (lat, -1.5)):
        first = fmean(row["attacked"] + level for row in by_model["base"] if row["prompt_set"] == "training")
        whole, change = (column.gaps[key]["attacked"].value for key in ("whole", "by_training"))
        assert whole is not None
        assert change == pytest.approx(whole - (people - first))
    moved = lat.moved_gaps["by_training"]["attacked"].value
    assert moved == pytest.approx(
        (lat.gaps["by_training"]["attacked"].value or 0) - (own.gaps["by_training"]["attacked"].value or 0)
    )
    assert view.columns[-1].sets["training"]["plain"].n == 10
    # A base model that was not asked on an arm's prompts says nothing of what training made of them.
    less = study_gap(
        plan, replace(suite, risks=[*base[: len(by_model["base"])], *(row for rows in arms.values() for row in rows)]), "u"
    )
    assert less is not None
    assert ["by_training" in column.gaps for column in less.columns] == [True, True, False, False]


def interval_width(found: Interval) -> float:
    assert found.low is not None
    assert found.high is not None
    return found.high - found.low


def test_a_study_shows_the_gap_beside_robustness_in_every_form(tmp_path: Path) -> None:
    plan, suites = a_study(tmp_path), {"heldout": a_gap_suite(tmp_path, (1, 2, 3))}
    page = Path(write_study(plan, suites, str(tmp_path / "out"))).read_text()
    assert page.count("The distribution gap") == 1
    section = page[page.index("The distribution gap") :]
    assert section.index("minus training prompts") < section.index("<td>broken</td>")
    assert "The base model was asked on the prompts of dat, seed 1." in section
    # In every figure the base model comes first, in its own style.
    names = re.findall(r'class="name"[^>]*>([^<]+)<', page)
    assert names[:4] == names[-4:] == ["base", "dat", "cat", "lat"]
    rows = list(csv.DictReader(io.StringIO((tmp_path / "out/tables/heldout/table.csv").read_text())))
    gaps = [row for row in rows if row["measure"] == "gap/whole/attacked"]
    assert [row["model"] for row in gaps] == ["dat", "cat", "lat", "base"]
    assert all(float(row["low"]) < float(row["value"]) < float(row["high"]) for row in gaps)
    for name in ("table.md", "table.tex"):
        assert "Written minus training prompts" in (tmp_path / "out/tables/heldout" / name).read_text()
    rates, gap, last = study_text(plan, suites)
    assert isinstance(rates, TerminalTable)
    assert isinstance(gap, TerminalTable)
    assert isinstance(last, str)
    assert gap.header == ["Responses after", "dat", "cat", "lat", "base"]
    # Of a study also what training made of the whole gap.
    assert len(gap.rows) == 2 * (4 + 5)
    assert len(rates.rows) == len(study_measures(plan, suites))


def test_a_study_of_one_seed_has_intervals_over_behaviors(tmp_path: Path) -> None:
    plan, suite = a_study(tmp_path, seeds=(2,)), a_gap_suite(tmp_path, (2,))
    view = study_gap(plan, suite, "behaviors, one seed")
    assert view is not None
    gap = suite.metrics.models["dat@2"].gap
    assert gap is not None
    assert view.about.gaps["whole"]["plain"] == gap.gaps["whole"].plain.interval
    assert "The distribution gap" in render_study(plan, {"heldout": suite}, study_measures(plan, {"heldout": suite}))


def test_a_study_without_scored_prompts_shows_no_gap(tmp_path: Path) -> None:
    plan, suite = a_study(tmp_path), a_suite(tmp_path)
    assert study_gap(plan, suite, "u") is None
    assert "The distribution gap" not in render_study(plan, {"heldout": suite}, study_measures(plan, {"heldout": suite}))
