"""Judges against people: exact small cases, odd files, and the figures that come with the project."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import pytest

from dat_ray.cli import main
from dat_ray.config.loading import load_recipe
from dat_ray.data.rundir import open_run
from dat_ray.engines.base import Judgment
from dat_ray.engines.refusal_judge import RefusalJudge
from dat_ray.errors import DatError, InputError
from dat_ray.evaluation.agreement import cohen_kappa
from dat_ray.evaluation.calibration import Labeled, calibrate, read_labeled, shipped_calibration
from dat_ray.measures.intervals import wilson, wilson_pooled
from tests.unit.measures.limits import covers, limits


class Reader:
    """Says what the completion says."""

    name, fingerprint, is_proxy = "reader", "0", False
    deviations: Sequence[str] = ("reads nothing",)

    def judge(self, goals: Sequence[str], prompts: Sequence[str], completions: Sequence[str]) -> list[Judgment]:
        known = {"h": Judgment("harmful", 1.0), "n": Judgment("not_harmful", 0.0), "?": Judgment("unparsed", None)}
        return [known.get(text) or Judgment("unparsed", None, "no answer") for text in completions]


def test_kappa_is_cohens() -> None:
    # Cohen's table: 20 and 15 agreements, 5 and 10 disagreements of 50: (0.7 - 0.5) / 0.5.
    first = [True] * 25 + [False] * 25
    second = [True] * 20 + [False] * 5 + [True] * 10 + [False] * 15
    assert cohen_kappa(first, second) == pytest.approx(0.4)
    assert cohen_kappa([True, False], [True, False]) == 1.0
    assert cohen_kappa([True, True], [True, True]) is None
    assert cohen_kappa([], []) is None


def test_figures_by_source_with_what_could_not_be_read() -> None:
    rows = [
        *[Labeled("one", f"g{i}", "h", True) for i in range(6)],
        *[Labeled("one", f"g{i + 6}", "n", False) for i in range(3)],
        Labeled("one", "g9", "h", False),
        Labeled("two", "g0", "?", True),
        Labeled("two", "g1", "gone", False),
        Labeled("two", "g2", "n", True),
    ]
    found = calibrate(Reader(), rows)
    one, two = found.sources["one"], found.sources["two"]
    assert (one.accuracy.value, one.n, one.read) == (0.9, 10, 10)
    assert limits(one.accuracy) == pytest.approx(limits(wilson(9, 10)))
    assert one.kappa == pytest.approx((0.9 - 0.54) / 0.46)
    assert (two.accuracy.value, two.n, two.read) == (0.0, 3, 1)
    assert found.confusion.people_harmful.model_dump() == {"harmful": 6, "not_harmful": 1, "unparsed": 1, "failed": 0}
    assert found.confusion.people_not_harmful.model_dump() == {"harmful": 1, "not_harmful": 3, "unparsed": 0, "failed": 1}
    # Ten prompts, although eleven answers were read: g2 was judged twice, once right.
    assert found.accuracy.n_prompts == 10
    with pytest.raises(DatError, match="none of 1 rows"):
        calibrate(Reader(), rows[-2:-1])


@pytest.mark.parametrize(("often", "often_right", "once_right"), [(60, False, True), (50, True, False), (3, False, True)])
def test_an_accuracy_lies_in_its_interval_where_prompts_have_unlike_numbers_of_answers(
    often: int, often_right: bool, once_right: bool
) -> None:
    def answered(goal: str, right: bool) -> Labeled:
        return Labeled("one", goal, "h" if right else "n", True)

    rows = [*(answered("often", often_right) for _ in range(often)), *(answered(f"g{at}", once_right) for at in range(15))]
    found = calibrate(Reader(), rows).accuracy
    right = often * often_right + 15 * once_right
    assert found.value == pytest.approx(right / (often + 15))
    assert covers(found, right / (often + 15))
    groups = {"often": [float(often_right)] * often} | {f"g{at}": [float(once_right)] for at in range(15)}
    assert limits(found) == limits(wilson_pooled(groups))
    assert found.n_prompts == 16


def test_files_that_do_not_fit_are_named(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_text("goal,completion,label,source\ng,a,harmful,x\ng,,0,y\n")
    assert read_labeled([str(path)]) == [Labeled("x", "g", "a", True), Labeled("y", "g", "", False)]
    path.write_text("goal,completion,label\ng,a,perhaps\n")
    with pytest.raises(InputError, match="perhaps"):
        read_labeled([str(path)])
    path.write_text("goal,label\ng,harmful\n")
    with pytest.raises(InputError, match="no column completion or response or generation or target_response"):
        read_labeled([str(path)])


def test_the_shipped_figures_are_those_of_the_rules_on_xstest(public_data: Path, tmp_path: Path) -> None:
    folder = public_data / "xstest" / "human_labelled_completions"
    out = tmp_path / "figures.json"
    assert main(["evaluate", "--calibrate", *sorted(map(str, folder.glob("*.csv"))), "--out", str(out)]) == 0
    found = json.loads(out.read_text())
    judge = RefusalJudge(0.5)
    shipped = shipped_calibration("refusal-rules", judge.fingerprint)
    assert shipped is not None, "the rules changed: measure again with `dat evaluate --calibrate ... --out`"
    assert shipped.model_dump() | {"data": None} == found
    # Counted once more, by hand.
    right = total = 0
    for path in folder.glob("*.csv"):
        with path.open(encoding="utf-8", newline="") as stream:
            for row in csv.DictReader(stream):
                (verdict,) = judge.judge([row["prompt"]], [""], [row["completion"]])
                right += (verdict.verdict == "harmful") == (row["final_label"] == "1_full_compliance")
                total += 1
    assert found["n"] == total == 2250
    assert found["accuracy"]["value"] == pytest.approx(right / total)
    assert found["accuracy"]["low"] > 0.9


def test_changed_rules_have_no_figures() -> None:
    assert shipped_calibration("refusal-rules", "another") is None
    assert shipped_calibration("refusal-opening", "0") is None
    assert (resources.files("dat_ray.evaluation") / "calibrations" / "refusal-rules.json").is_file()


def test_list_prints_attacks_and_judges(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "--list", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {"pair", "gcg", "inpainting"} <= {one["name"] for one in found["attacks"]}
    assert {"refusal-rules", "strongreject-rubric"} <= {one["name"] for one in found["judges"]}
    assert main(["evaluate", "--list"]) == 0
    assert "best_of_n" in capsys.readouterr().out


@pytest.mark.parametrize("goal", ["", "  "])
def test_a_labeled_answer_to_nothing_is_a_bad_row(tmp_path: Path, goal: str) -> None:
    path = tmp_path / "labels.csv"
    path.write_text(f"goal,completion,label\nDo it,Sure,harmful\n{goal},Sure,harmful\n")
    with pytest.raises(InputError, match=r"row 2 \(line 3\) has no 'goal': fill it in"):
        read_labeled([str(path)])


LABELED = "goal,prompt,completion,label\ng,p,I cannot help with that.,not_harmful\ng,p,Sure. Here it is.,harmful\n"


def test_the_judge_of_a_run_is_the_one_that_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "rows.csv").write_text(LABELED)
    run = open_run(str(tmp_path / "run"), load_recipe("demo", ["judge.name=refusal-opening"]), resume=False)
    command = ["evaluate", "--calibrate", str(tmp_path / "rows.csv"), "--json"]
    assert main([*command, "--run-dir", run.root]) == 0
    assert json.loads(capsys.readouterr().out)["judge"]["name"] == "refusal-opening"
    assert main([*command, "--run-dir", str(tmp_path / "typo")]) == 2
    assert "--run-dir" in capsys.readouterr().err


def test_where_the_figures_cannot_go_is_said_before_anything_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert main(["evaluate", "--calibrate", "no-such.csv", "--out", str(tmp_path / "file/x.json")]) == 2
    assert "--out = " in capsys.readouterr().err
    (tmp_path / "rows.csv").write_text(LABELED)
    assert main(["evaluate", "--calibrate", str(tmp_path / "rows.csv"), "--out", str(tmp_path)]) == 1
    assert f"cannot write {tmp_path}" in capsys.readouterr().err
    # What belongs to it alone is not passed over.
    for option in (["--out", "x.json"], ["--json"]):
        assert main(["evaluate", "demo", *option]) == 2
        assert "belongs to --calibrate" in capsys.readouterr().err
