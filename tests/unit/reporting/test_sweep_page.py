from __future__ import annotations

import csv
import io
from dataclasses import replace
from pathlib import Path

import pytest

from dat_ray.evaluation.results import JudgeFacts
from dat_ray.reporting.charts import FrontPoint, front_figure, undominated
from dat_ray.reporting.collect import read_suite
from dat_ray.reporting.sweep import SweepRow, front_csv, write_front
from tests.unit.reporting.synthetic_run import evaluate, new_run, recipe
from tests.unit.reporting.test_findings import metrics
from tests.unit.reporting.test_report import Page


def point(label: str, broken: float, refused: float) -> FrontPoint:
    return FrontPoint(label, (broken, broken, broken), (refused, refused, refused))


def test_the_front_holds_what_nothing_beats_in_both() -> None:
    found = [point("base", 0.9, 0.0), point("a", 0.5, 0.1), point("b", 0.5, 0.2), point("c", 0.2, 0.6), point("d", 0.6, 0.3)]
    assert [one.label for one in undominated(found)] == ["c", "a", "base"]
    # Equal points do not beat each other.
    assert len(undominated([point("a", 0.5, 0.1), point("b", 0.5, 0.1)])) == 2
    assert front_figure(found[:2], metrics()) is None
    figure = front_figure(found, metrics())
    assert figure is not None
    assert figure.title.startswith("3 of 5 are on the front")
    assert "refusal-rules (a proxy)" in figure.caption


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[SweepRow]:
    found = []
    for index, (broken, refused) in enumerate(((0.02, 0.5), (0.1, 0.2), (0.3, 0.4))):
        run = new_run(tmp_path_factory.mktemp("sweep") / f"p{index}")
        evaluate(run, "default", {"base": (0.8, 0.05, -1.8), "adapted": (broken, refused, -5.0)})
        found.append(
            SweepRow(f"retain_weight = {index}", f"points/p{index}", read_suite(run.evaluation("default")).metrics, None)
        )
    return [*found, SweepRow("retain_weight = 9", "points/p9", None, "<b>it broke</b>")]


def test_a_judge_of_refusals_is_named_on_the_page_and_in_the_numbers(rows: list[SweepRow], tmp_path: Path) -> None:
    reader = JudgeFacts(name="refusal-opening", fingerprint="other", is_proxy=True)
    read = [
        row if row.metrics is None else replace(row, metrics=row.metrics.model_copy(update={"refusal_judge": reader}))
        for row in rows
    ]
    page = Page(Path(write_front(recipe(), {"training.retain_weight": [0, 1, 2, 9]}, read, str(tmp_path))).read_text()).text
    assert "it tells refusals from compliance; over-refusal by refusal-opening, a proxy. Intervals" in page
    assert "judge refusal-rules (a proxy); over-refusal by refusal-opening, a proxy. Better is" in page
    judges = [row["judge"] for row in csv.DictReader(io.StringIO(front_csv(read)))]
    assert set(judges) == {"refusal-rules; over-refusal by refusal-opening, a proxy", ""}


def test_the_page_shows_every_point_with_intervals_and_tells_failures(rows: list[SweepRow], tmp_path: Path) -> None:
    where = write_front(recipe(), {"training.retain_weight": [0, 1, 2, 9]}, rows, str(tmp_path))
    html = Path(where).read_text()
    page = Page(html)
    assert page.headings[0].startswith("Proxy attack success is lowest at retain_weight = 0, with ")
    assert "1 of 4 points failed" in page.headings[0]
    assert "Failed: retain_weight = 9: <b>it broke</b>" in page.text
    assert "a rule-based proxy" in page.text
    assert page.tags["figure"] == 1
    links = [value for tag, name, value in page.attributes if tag == "a" and name == "href"]
    assert links == [f"points/p{i}/report/index.html" for i in range(3)]
    assert all(f"retain_weight = {i}" in page.text for i in range(3))


def test_the_csv_has_the_base_model_once_and_the_failed_point_empty(rows: list[SweepRow]) -> None:
    found = list(csv.DictReader(io.StringIO(front_csv(rows))))
    assert [row["point"] for row in found] == ["base model", *(row.label for row in rows)]
    assert found[-1]["broken"] == ""
    assert found[-1]["error"] == "<b>it broke</b>"
    metrics = rows[1].metrics
    assert metrics is not None
    assert float(found[2]["broken"]) == metrics.models["adapted"].boa.asr
    assert found[2]["judge"] == "refusal-rules"


def test_a_sweep_without_a_finished_point_has_a_page_too(tmp_path: Path) -> None:
    page = Page(Path(write_front(recipe(), {}, [SweepRow("a", "points/a", None, "no")], str(tmp_path))).read_text())
    assert page.headings == ["No point of 1 has both rates: there is no front. 1 of 1 points failed."]
    assert "No point has finished." in page.text
