from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest

from dat_ray.evaluation.results import AttackCounts, Metrics, ModelMetrics, OverRefusal, PairedDifference
from dat_ray.reporting.collect import CollectedSuite, read_suite
from dat_ray.reporting.suites import suite_view
from dat_ray.reporting.tables import Comparison, as_csv, as_latex, as_markdown, comparison, tex, write_tables
from tests.unit.reporting.synthetic_run import THREE, evaluate, new_run


@pytest.fixture(scope="module")
def metrics(tmp_path_factory: pytest.TempPathFactory) -> Metrics:
    run = new_run(tmp_path_factory.mktemp("tables") / "run")
    evaluate(run, "comparison", THREE)
    return read_suite(run.evaluation("comparison")).metrics


@pytest.fixture(scope="module")
def table(metrics: Metrics) -> Comparison:
    return comparison(metrics)


def test_cells_are_the_metrics_and_differences_are_from_the_first_model(metrics: Metrics, table: Comparison) -> None:
    assert table.models == ("base", "dat", "cat", "mixat")
    assert [measure.key for measure in table.measures] == ["direct", "inpainting", "boa", "over_refusal", "target_logprob"]
    boa = table.measures[2]
    for name, cell in zip(table.models, boa.cells, strict=True):
        block = metrics.models[name].boa
        assert (cell.value, cell.low, cell.high, cell.n) == (block.asr, block.low, block.high, block.n_behaviors)
    assert boa.cells[0].difference is None
    [pair] = [p for p in metrics.paired if (p.metric, p.first, p.second) == ("boa", "base", "cat")]
    assert (boa.cells[2].difference, boa.cells[2].difference_low) == (pair.difference, pair.low)


def test_variants_stand_below_their_attack(metrics: Metrics) -> None:
    counts = AttackCounts(asr=0.25, low=0.1, high=0.5, n_behaviors=4, attempts=5, worst_case=None)
    base = metrics.models["base"]
    variants = {"zh": counts, "": counts.model_copy(update={"asr": 0.75})}
    attacks = base.attacks | {"direct": base.attacks["direct"].model_copy(update={"variants": variants})}
    with_them = {"base": base.model_copy(update={"attacks": attacks}), "dat": metrics.models["dat"]}
    changed = metrics.model_copy(update={"models": with_them})
    measures = comparison(changed).measures
    assert [one.key for one in measures[:4]] == ["direct", "direct/zh", "direct/", "inpainting"]
    shown = [(one.name, one.cells[0].value, one.cells[0].n, one.cells[1].value) for one in measures[1:3]]
    assert shown == [("Direct request: zh", 0.25, 4, None), ("Direct request: no variant", 0.75, 4, None)]
    view = suite_view("default", CollectedSuite(changed, []), {})
    rows = [(row["measure"], row["model"], row["rate"], row["attempts"], row["begins"]) for row in view["rates"]]
    assert rows[2:4] == [("Direct request: zh", "base", "25%", 5, True), ("Direct request: no variant", "base", "75%", 5, True)]
    assert rows[1][:2] == ("Direct request", "dat")
    assert rows[4][:2] == ("In-painted prompts", "base")
    assert not [row for row in view["others"] if "zh" in row["measure"]]


def test_csv_gives_the_numbers_back(table: Comparison) -> None:
    rows = list(csv.DictReader(io.StringIO(as_csv(table))))
    assert len(rows) == 5 * 4
    for row, (measure, model, cell) in zip(
        rows, [(m, model, cell) for m in table.measures for model, cell in zip(table.models, m.cells, strict=True)], strict=True
    ):
        assert (row["measure"], row["model"]) == (measure.key, model)
        assert float(row["value"]) == cell.value
        assert row["difference"] == ("" if cell.difference is None else str(cell.difference))
        assert "proxy" in row["judge"]


def test_markdown_and_latex_have_a_cell_for_every_column_and_name_the_proxy(table: Comparison) -> None:
    lines = as_markdown(table).splitlines()
    assert {line.count("|") for line in lines if line.startswith("|")} == {9}
    assert lines[0] == "| Measure | base | dat | Δ dat | cat | Δ cat | mixat | Δ mixat |"
    latex = as_latex(table)
    body = [line for line in latex.splitlines() if line.endswith(r"\\")]
    assert len(body) == 6
    assert {line.count(" & ") for line in body} == {7}
    assert r"$\Delta$ dat" in body[0]
    for text in (as_markdown(table), latex):
        assert "refusal-rules, a rule-based proxy" in text


def test_what_was_not_measured_is_a_dash_and_zero_has_no_sign(metrics: Metrics) -> None:
    base, dat = metrics.models["base"], metrics.models["dat"]
    empty = base.model_copy(update={"over_refusal": OverRefusal(rate=None, low=None, high=None)})
    few = metrics.model_copy(update={"models": {"base": empty, "dat": dat}, "paired": []})
    row = next(line for line in as_markdown(comparison(few)).splitlines() if line.startswith("| Over-refusal"))
    assert row.split("|")[2].strip() == "–"
    assert row.split("|")[4].strip() == "–"
    same = PairedDifference(metric="boa", attack=None, first="base", second="dat", difference=0.0, low=-0.1, high=0.1)
    paired = few.model_copy(update={"paired": [same]})
    row = next(line for line in as_markdown(comparison(paired)).splitlines() if line.startswith("| Any"))
    assert row.split("|")[4].strip() == "0 [−10, +10]"


def test_latex_characters_are_written_out() -> None:
    assert tex(r"50% of a_b & {c} ~ #1 ^ $ \x") == (
        r"50\% of a\_b \& \{c\} \textasciitilde{} \#1 \textasciicircum{} \$ \textbackslash{}x"
    )


def test_the_forms_of_a_table_are_written(table: Comparison, tmp_path: Path) -> None:
    written = write_tables(table, str(tmp_path))
    assert [Path(path).name for path in written] == ["table.md", "table.csv", "table.tex"]
    assert Path(written[0]).read_text() == as_markdown(table)


SIDE_EFFECTS = {
    "kl_drift": {"mean": 0.1234, "low": 0.1, "high": 0.15, "n": 8, "unit": "nats per token"},
    "utility": {
        "arc_easy": {"acc": {"value": 0.5, "low": 0.25, "high": 0.75, "stderr": 0.1, "n": 16}},
        "wikitext": {"word_perplexity": {"value": 20.5, "low": None, "high": None, "stderr": None, "n": None}},
    },
}


def test_drift_benchmarks_and_kinds_of_refusals_are_shown_where_they_were_measured(metrics: Metrics) -> None:
    base, dat = metrics.models["base"], metrics.models["dat"]
    kinds = {
        kind: {"rate": rate, "low": 0.0, "high": 0.9}
        for kind, rate in (("full_compliance", 0.5), ("partial_refusal", 0.125), ("full_refusal", 0.375))
    }
    tree = dat.model_dump() | SIDE_EFFECTS | {"over_refusal": dat.over_refusal.model_dump() | {"kinds": kinds}}
    more = metrics.model_copy(update={"models": {"base": base, "dat": ModelMetrics.model_validate(tree)}})
    lines = as_markdown(comparison(more)).splitlines()
    cells = {row[1].strip(): [one.strip() for one in row[2:5]] for row in (line.split("|") for line in lines) if len(row) > 4}
    # Not measured for the base, and no difference without a pair of values.
    assert cells["KL drift (nats per token)"] == ["–", "0.12 [0.10, 0.15]", "–"]
    assert cells["arc_easy, acc"] == ["–", "50 [25, 75]", "–"]
    assert cells["wikitext, word_perplexity"] == ["–", "20.50", "–"]
    assert cells["Harmless prompts: partial refusal"] == ["–", "12 [0, 90]", "–"]
    assert "KL drift" not in as_markdown(comparison(metrics))
