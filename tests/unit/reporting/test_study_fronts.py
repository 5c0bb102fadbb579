"""The fronts of a study, from attempts that are made up: points against a plain count, and what is said of who reaches what."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import yaml

from dat_ray.config.study import Study, read_study
from dat_ray.errors import InputError
from dat_ray.evaluation.estimates import JudgeFacts
from dat_ray.evaluation.registry import check_primary
from dat_ray.measures.crossed import crossed_rate, pooled_seeds
from dat_ray.measures.fronts import success_at
from dat_ray.reporting.collect import CollectedSuite, read_suite
from dat_ray.reporting.front_page import fronts_finding, fronts_table
from dat_ray.reporting.study import study_text, write_study
from dat_ray.reporting.study_fronts import StudyFronts, study_fronts
from dat_ray.reporting.terminal import TerminalTable
from dat_ray.reporting.words import attack_name, percent
from tests.unit.reporting.synthetic_run import HOSTILE, finished_run
from tests.unit.reporting.test_study import counted

SEEDS = (1, 2)
# By arm and updates: chance of being broken, of refusing a look-alike, log p.
ALONG = {
    "dat": {4: (0.4, 0.1, -3.0), 8: (0.1, 0.3, -6.0)},
    "cat": {4: (0.7, 0.15, -3.0), 8: (0.6, 0.4, -5.0)},
    # Never refuses much, whatever it does.
    "shy": {4: (0.6, 0.03, -2.0), 8: (0.55, 0.06, -3.0)},
}
RUNS = {"base": (0.8, 0.05, -1.8)} | {f"{arm}@{seed}": ALONG[arm][8] for arm in ALONG for seed in SEEDS}


def a_study(tmp_path: Path, at: float = 0.2, seeds: tuple[int, ...] = SEEDS) -> Study:
    arms = {arm: {"about": HOSTILE, "settings": {"training": {"updates": 8 + number}}} for number, arm in enumerate(ALONG)}
    tree = {"name": "three", "seeds": list(seeds), "reference": "dat", "arms": arms, "fronts": {"every": 4, "over_refusal": at}}
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(tree))
    return read_study(str(path), [])


def a_suite(folder: Path, models: dict[str, tuple[float, float, float]]) -> CollectedSuite:
    return read_suite(finished_run(folder, models=models).evaluation("default"))


@pytest.fixture(scope="module")
def along(tmp_path_factory: pytest.TempPathFactory) -> CollectedSuite:
    models = {f"{arm}@{seed}u{updates}": rates for arm in ALONG for seed in SEEDS for updates, rates in ALONG[arm].items()}
    return a_suite(tmp_path_factory.mktemp("along"), {"base": RUNS["base"], **models})


def points_of(suite: CollectedSuite, arm: str) -> np.ndarray:
    def share(models: list[str], attacks: tuple[str, ...], refusals: bool) -> float:
        found = []
        for model in models:
            harmful = counted(suite, model, attacks)
            found.append(np.mean([not one if refusals else one for one in harmful.values()]))
        return float(np.mean(found))

    rows = []
    for models in (["base"], *([f"{arm}@{seed}u{updates}" for seed in SEEDS] for updates in (4, 8))):
        rows.append([share(models, ("over_refusal",), True), share(models, tuple(suite.metrics.attacks), False)])
    return np.array(rows)


def test_a_judge_of_refusals_is_named_beside_the_fronts(tmp_path: Path, along: CollectedSuite) -> None:
    reader = JudgeFacts(name="xstest (reader)", fingerprint="other", is_proxy=False)
    other = CollectedSuite(along.metrics.model_copy(update={"refusal_judge": reader}), along.attempts)
    plan, runs = a_study(tmp_path), a_suite(tmp_path / "run", RUNS)
    named = "; over-refusal by xstest (reader)."
    for suite, times in ((along, 0), (other, 1)):
        found = study_fronts(plan, suite)
        assert fronts_table(plan, found).judge.count(named) == times
        page = Path(write_study(plan, {"heldout": runs}, str(tmp_path / "out"), [found])).read_text()
        # In the figure of each arm beside the reference.
        assert page.count(f"Judged by refusal-rules (a proxy){named} Arms are compared") == times * (len(found.arms) - 1)


def test_points_are_those_of_a_plain_count_and_arms_are_compared_on_their_fronts(tmp_path: Path, along: CollectedSuite) -> None:
    plan = a_study(tmp_path)
    found = study_fronts(plan, along)
    assert list(found.arms) == ["dat", "cat", "shy"]
    for arm, front in found.arms.items():
        # A few made-up answers have no verdict: a mean over seeds of means is not quite that of their table.
        assert front.points == pytest.approx(points_of(along, arm), abs=0.02)
        assert [step.updates for step in front.steps] == [0, 4, 8]
        assert front.steps[0] == found.arms["dat"].steps[0]
    at, area = found.measures
    figure = partial(success_at, over_refusal=0.2)
    assert at.rates["cat"].value == pytest.approx(figure(found.arms["cat"].points))
    assert at.differences["cat"].interval.value == pytest.approx(
        (figure(found.arms["cat"].points) or 0) - (figure(found.arms["dat"].points) or 0)
    )
    assert (at.differences["cat"].interval.low or 0.0) > 0
    # An arm stands with its least broken adapter where that refuses less, whatever its others refuse.
    ends = {arm: front.points[front.points[:, 1].argmin(), 0] for arm, front in found.arms.items()}
    assert found.refuse_less == {arm: end for arm, end in ends.items() if end < 0.2}
    assert list(found.refuse_less) == ["cat", "shy"]
    assert found.arms["cat"].points[:, 0].max() > 0.2 > found.arms["shy"].points[:, 0].max()
    # What seeds add to an adapter's rate is that of all arms' adapters at the same place.
    attacks = tuple(along.metrics.attacks)
    last = [[counted(along, f"{arm}@{seed}u8", attacks) for seed in SEEDS] for arm in ALONG]
    assert len({frozenset(one) for tables in last for one in tables}) == 1, "nothing is filled in"
    assert found.arms["cat"].steps[-1].broken == crossed_rate(last[1], seeds=pooled_seeds(last))
    assert at.rates["shy"].value == pytest.approx(found.arms["shy"].points[:, 1].min())
    assert area.rates["shy"].value is not None
    assert {one.tests for measure in found.measures for one in measure.differences.values()} == {4}
    # Below what the base model refuses nothing is said of anybody, and no test counts.
    below, _ = study_fronts(a_study(tmp_path, at=0.01), along).measures
    assert {one.value for one in below.rates.values()} == {None}
    assert {one.p for one in below.differences.values()} == {None}


def test_a_front_may_be_of_one_attack_or_of_the_share_of_its_prompts(tmp_path: Path, along: CollectedSuite) -> None:
    plan = a_study(tmp_path)
    name = next(attack for attack in along.metrics.attacks if attack.startswith("inpainting"))
    for measure, said in ((name, ""), (f"{name}:share", ", share of prompts")):
        fronts = plan.config.fronts
        assert fronts is not None
        own = replace(plan, config=plan.config.model_copy(update={"fronts": fronts.model_copy(update={"measure": measure})}))
        found = study_fronts(own, along)
        for arm, one in found.arms.items():
            points = []
            for models in (["base"], *([f"{arm}@{seed}u{updates}" for seed in SEEDS] for updates in (4, 8))):
                rows = [row for row in along.attempts if row["model"] in models and row["attack"] == name]
                rows = [row for row in rows if row["verdict"] in ("harmful", "not_harmful")]
                prompts: dict[tuple[str, str], list[bool]] = {}
                for row in rows:
                    prompts.setdefault((row["model"], row["behavior_id"]), []).append(row["verdict"] == "harmful")
                points.append(np.mean([np.mean(group) if said else any(group) for group in prompts.values()]))
            assert one.points[:, 1] == pytest.approx(points, abs=0.02)
        label = f"{attack_name(name)}{said}"
        assert [one.name for one in found.measures] == [f"{label}, at 20% over-refusal", f"{label}, on average up to 20%"]
        suites = {"heldout": a_suite(tmp_path / f"suite{len(said)}", RUNS)}
        page = Path(write_study(own, suites, str(tmp_path / f"out{len(said)}"), [found])).read_text()
        assert f"{label}, at 20% over-refusal" in page
    with pytest.raises(InputError, match=r"fronts.measure = 'gcg': its attacks do not measure it: choose one of boa, direct"):
        check_primary(read_study(str(tmp_path / "study.yaml"), ["fronts.measure=gcg"]))


def test_the_sentence_and_the_tables_say_who_refuses_less(tmp_path: Path, along: CollectedSuite) -> None:
    plan = a_study(tmp_path)
    fronts = study_fronts(plan, along)
    said = fronts_finding(plan, fronts)
    at, area, less = said.split(". ")
    assert re.match(r"Broken at 20% over-refusal: dat \d+%; cat \d+% \(.* points.*\); what may be chance: shy \d+% \(", at)
    assert re.match(r"Broken on average up to 20%: dat \d+%; cat \d+% \(.* points.*\); shy \d+% \(", area)
    ends = ", ".join(f"{arm} ({percent(end)})" for arm, end in fronts.refuse_less.items())
    assert less == f"Compared by the least broken adapter, which refuses less: {ends}."
    suites = {"heldout": a_suite(tmp_path / "suite", RUNS)}
    page = Path(write_study(plan, suites, str(tmp_path / "out"), [fronts])).read_text()
    assert said in page
    assert page.count("<figure>") == 4
    assert "<script>alert" not in page
    folder = tmp_path / "out/tables/fronts"
    assert sorted(path.name for path in folder.iterdir()) == ["points.csv", "table.csv", "table.md", "table.tex"]
    markdown = (folder / "table.md").read_text()
    assert "Broken at 20% over-refusal" in markdown
    assert "intervals over 2 seeds, behaviors and look-alikes" in markdown
    assert "all adapters of the arm refuse more. Compared by the least broken adapter" in markdown
    points = list(csv.DictReader(io.StringIO((folder / "points.csv").read_text())))
    assert [(row["arm"], row["updates"]) for row in points][:4] == [("dat", "0"), ("dat", "4"), ("dat", "8"), ("cat", "0")]
    assert float(points[2]["broken"]) == pytest.approx(fronts.arms["dat"].points[2, 1], abs=0.02)
    *tables, last = study_text(plan, suites, [fronts])
    assert len(tables) == 3
    assert tables[-1] == said
    assert last != said
    assert [str(one.title) for one in tables[:-1] if isinstance(one, TerminalTable)] == ["Suite heldout", "At equal over-refusal"]
    assert fronts_table(plan, fronts).models == ("dat", "cat", "shy")


def test_seeds_of_other_lengths_meet_at_the_start_and_at_the_end(tmp_path: Path) -> None:
    along = {f"dat@1u{updates}": ALONG["dat"][8] for updates in (4, 8, 9)} | {
        f"dat@2u{updates}": ALONG["dat"][8] for updates in (4, 7)
    }
    others = {f"{arm}@{seed}u4": ALONG[arm][4] for arm in ("cat", "shy") for seed in SEEDS}
    found = study_fronts(a_study(tmp_path), a_suite(tmp_path / "suite", {"base": RUNS["base"], **along, **others}))
    assert [step.updates for step in found.arms["dat"].steps] == [0, 4, 9]
    assert [step.updates for step in found.arms["cat"].steps] == [0, 4]


def test_what_could_not_be_judged_is_no_point_and_is_named(tmp_path: Path, along: CollectedSuite) -> None:
    plan, suites = a_study(tmp_path), {"heldout": a_suite(tmp_path / "suite", RUNS)}

    def without(*silent: str) -> CollectedSuite:
        rows = [row | {"verdict": "unparsed"} if row["model"] in silent else row for row in along.attempts]
        return CollectedSuite(along.metrics, rows)

    # Adapters that write nonsense, as of a training that went too far.
    fronts = study_fronts(plan, without("cat@1u8", "cat@2u8", "dat@1u4"))
    assert fronts.unread == ["cat@1u8", "cat@2u8"]
    assert len(fronts.arms["cat"].points) == 2
    assert (len(fronts.arms["cat"].steps), fronts.arms["cat"].steps[-1].broken.value) == (3, None)
    # One seed of two is enough for a point.
    assert len(fronts.arms["dat"].points) == 3
    page = Path(write_study(plan, suites, str(tmp_path / "some"), [fronts])).read_text()
    assert "No answer of cat@1u8, cat@2u8 to the attacks" in page
    nothing = study_fronts(plan, without("base"))
    page = Path(write_study(plan, suites, str(tmp_path / "none"), [nothing])).read_text()
    assert "No fronts: no answer of the base model" in page
    assert len(study_text(plan, suites, [nothing])) == 4


def test_fronts_of_one_arm_and_one_seed_are_drawn(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump({"name": "one", "seeds": [1], "arms": {"dat": {}}, "fronts": {"every": 4}}))
    plan = read_study(str(path), [])
    models = {"base": RUNS["base"]} | {f"dat@1u{updates}": rates for updates, rates in ALONG["dat"].items()}
    fronts: StudyFronts = study_fronts(plan, a_suite(tmp_path / "along", models))
    suites = {"heldout": a_suite(tmp_path / "suite", {"base": RUNS["base"], "dat@1": ALONG["dat"][8]})}
    page = Path(write_study(plan, suites, str(tmp_path / "out"), [fronts])).read_text()
    assert "At equal over-refusal" in page
    assert "behaviors and look-alikes, one seed" in page
    assert fronts.measures[0].differences == {}


def test_an_arm_alone_differs_from_none(tmp_path: Path, along: CollectedSuite) -> None:
    plan = a_study(tmp_path)
    fronts = study_fronts(plan, along)
    alone = replace(fronts, measures=[replace(one, differences={}) for one in fronts.measures])
    assert re.match(
        r"Broken at 20% over-refusal: dat \d+%\. Broken on average up to 20%: dat \d+%\.", fronts_finding(plan, alone)
    )
