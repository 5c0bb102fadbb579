"""Records of a study's parts: what is kept, what is left out, and what merging says of parts that do not fit."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pytest

from dat_ray.config.study import Study
from dat_ray.data.row_types import Row
from dat_ray.data.schemas import ATTEMPTS, RISKS
from dat_ray.data.shards import join, read_table, write_manifest, write_shard
from dat_ray.errors import InputError, ShardError
from dat_ray.evaluation.gap_pairs import RISKS_FOLDER
from dat_ray.evaluation.results import load_metrics, store_metrics
from dat_ray.pipeline.study_records import PART, read_parts, write_part
from dat_ray.reporting.collect import read_suite
from dat_ray.reporting.study import render_study
from dat_ray.reporting.study_figures import study_measures
from tests.unit.reporting.synthetic_run import finished_run
from tests.unit.reporting.test_gap import LEVELS, scored, with_gap
from tests.unit.reporting.test_study import ARMS, a_study
from tests.unit.test_fuzz_readers import LENGTHS, try_files

SEEDS = (1, 2)


@dataclass(frozen=True)
class Made:
    """A study whose evaluation is made up.

    Attributes:
        plan: the study.
        whole: folder of the evaluation of all its models.
        root: of what is made of it.
    """

    plan: Study
    whole: str
    root: Path

    def part(self, name: str, runs: Sequence[str], change: dict[str, object] | None = None, *, gap: bool = False) -> str:
        """The record of some runs, as the machine would leave it that made them alone; `change` is of the base model's rows."""
        plan = self.plan.part(runs)
        models = ["base", *(run.model for run in plan.runs)]
        folder = str(self.root / f"{name}-evaluation")
        rows = [row for row in read_table(self.whole).to_pylist() if row["model"] in models]
        table(folder, [row | (change or {}) if row["model"] == "base" else row for row in rows], ATTEMPTS)
        metrics = load_metrics(self.whole)
        kept = metrics.model_copy(update={"models": {one: metrics.models[one] for one in models}, "attempts": len(rows)})
        if gap:
            risks = [row for at, one in enumerate(models) for row in scored(one, at)]
            whole = [{"risk_id": str(i), "source_id": "s", "prompt": "p", "target": "t"} | row for i, row in enumerate(risks)]
            table(join(folder, RISKS_FOLDER), whole, RISKS)
            kept = with_gap(kept, risks)
        store_metrics(folder, kept)
        return write_part(plan, {"heldout": folder}, str(self.root / name))


def table(folder: str, rows: list[Row], schema: pa.Schema) -> None:
    write_manifest(folder, [write_shard(folder, "part-0.parquet", pa.Table.from_pylist(rows, schema=schema))], "mark")


@pytest.fixture
def made(tmp_path: Path) -> Made:
    models = {"base": (0.8, 0.05, -1.8)} | {f"{arm}@{seed}": rates for arm, rates in ARMS.items() for seed in SEEDS}
    return Made(a_study(tmp_path, SEEDS), finished_run(tmp_path / "run", models=models).evaluation("default"), tmp_path)


def test_parts_together_are_the_whole_and_the_base_model_counts_once(made: Made) -> None:
    parts = [made.part("one", ["cat@*", "dat@1"]), made.part("two", ["dat@2", "lat@*"])]
    merged, whole = read_parts(made.plan, parts), read_suite(made.whole)
    found = merged.suites["heldout"]
    assert study_measures(made.plan, {"heldout": found}) == study_measures(made.plan, {"heldout": whole})
    assert (found.metrics.attempts, found.metrics.errors) == (whole.metrics.attempts, whole.metrics.errors)
    assert found.metrics.unparsed == whole.metrics.unparsed
    asked = sum(row["model"] == "base" for row in whole.attempts)
    assert f"Of {asked} questions to the base model in later parts {asked} were in the words of the first" in merged.notes[0]
    assert f"{asked} were answered in its words, and {asked} judged the same" in merged.notes[0]
    # One record is no merger: there is nothing to hold against each other.
    assert read_parts(made.plan, [made.part("all", ["*"])]).notes == []


def test_a_record_has_digests_in_place_of_texts(made: Made) -> None:
    root = made.part("one", ["cat@1"], gap=True)
    before, after = read_table(made.whole).to_pylist(), read_table(join(root, "heldout")).to_pylist()
    texts = {row[column] for row in before for column in ("goal", "prompt", "completion") if row[column]}
    written = b"".join(path.read_bytes() for path in Path(root).rglob("*") if path.is_file())
    kept = {str(value) for row in after for value in row.values()}
    assert len(texts) > 20
    assert not texts & kept
    assert not [text for text in texts if text.encode() in written]
    assert {row["verdict"] for row in after} == {row["verdict"] for row in before}
    # Two texts have one digest only where they are one text.
    own = [row for row in before if row["model"] in ("base", "cat@1")]
    assert len({row["completion"] for row in after}) == len({row["completion"] for row in own})
    risks = read_table(join(root, "heldout", RISKS_FOLDER)).to_pylist()
    assert all(len(row["target"]) == 12 for row in risks)


def test_the_base_models_gap_is_of_the_part_that_measured_it(made: Made) -> None:
    merged = read_parts(made.plan, [made.part("one", ["cat@*", "lat@*"]), made.part("two", ["dat@*"], gap=True)])
    found = merged.suites["heldout"]
    assert {row["model"] for row in found.risks} == {"base", "dat@1", "dat@2"}
    assert found.metrics.models["base"].gap is not None
    # What it was asked on the prompts of another part's runs alone comes with that part.
    one, two = made.part("three", ["cat@*", "lat@*"], gap=True), made.part("four", ["dat@*"], gap=True)
    risks = join(one, "heldout", RISKS_FOLDER)
    other = {"training": "training/cat@1", "rewrites": "rewrites"}
    rows = [
        row | ({"prompt_set": other[row["prompt_set"]]} if row["model"] == "base" else {})
        for row in read_table(risks).to_pylist()
        if row["model"] != "base" or row["prompt_set"] in other
    ]
    Path(risks, "_manifest.json").unlink()
    table(risks, rows, RISKS)
    for places in ([one, two], [two, one]):
        together = read_parts(made.plan, places).suites["heldout"]
        sets = Counter(row["prompt_set"] for row in together.risks if row["model"] == "base")
        assert sets == {**dict.fromkeys(LEVELS, 20), "training/cat@1": 20}
    # A record whose scored prompts are gone leaves nobody's gap blank.
    Path(two, "heldout", RISKS_FOLDER, "_manifest.json").unlink()
    with pytest.raises(ShardError, match=r"heldout/risks/_manifest.json is missing"):
        read_parts(made.plan, [one, two])


def test_the_page_says_whose_prompts_the_base_models_gap_is_of(tmp_path: Path) -> None:
    # Of the whole study's first seed, whichever seeds are compared.
    seeds = (4, 2, 3)
    models = {"base": (0.8, 0.05, -1.8)} | {f"{arm}@{seed}": rates for arm, rates in ARMS.items() for seed in seeds}
    whole = finished_run(tmp_path / "run", models=models).evaluation("default")
    made = Made(a_study(tmp_path, seeds, reference="lat"), whole, tmp_path)
    some = made.plan.part(["*@2", "*@3"]).alone()

    def section(plan: Study, places: list[str]) -> str:
        suites = read_parts(plan, places).suites
        page = render_study(plan, suites, study_measures(plan, suites))
        return page.partition("The distribution gap")[2]

    first, rest = made.part("first", ["*@4"], gap=True), made.part("rest", ["*@2", "*@3"], gap=True)
    # As `study_pairs` has it: the base model's own sets are in the part that has lat@4.
    risks = join(rest, "heldout", RISKS_FOLDER)
    rows = [row for row in read_table(risks).to_pylist() if row["model"] != "base" or row["prompt_set"] == "rewrites"]
    Path(risks, "_manifest.json").unlink()
    table(risks, rows, RISKS)
    for plan in (made.plan, some):
        assert "The base model was asked on the prompts of lat, seed 4." in section(plan, [first, rest])
    alone = section(some, [rest])
    assert "The base model has no prompts of its own here: these are of lat, seed 4, which is in none of the parts." in alone
    assert "was asked on the prompts" not in alone


def test_where_the_base_model_answered_otherwise_is_counted(made: Made) -> None:
    parts = [made.part("one", ["cat@*"]), made.part("two", ["dat@*", "lat@*"], {"completion": "other", "verdict": "unparsed"})]
    [note] = read_parts(made.plan, parts).notes
    assert ", 0 were answered in its words" in note


def test_the_base_models_answers_are_of_the_plans_first_run_in_whatever_order_parts_come(made: Made) -> None:
    cat = made.part("one", ["cat@*"], {"verdict": "harmful"})
    rest = made.part("two", ["dat@*", "lat@*"], {"completion": "other", "verdict": "not_harmful"})
    for folder, unread in ((cat, 1), (rest, 77)):
        metrics = load_metrics(join(folder, "heldout"))
        store_metrics(join(folder, "heldout"), metrics.model_copy(update={"unparsed": metrics.unparsed | {"base": unread}}))
    first = made.plan.runs[0].model
    for places in ([cat, rest], [rest, cat]):
        found = read_parts(made.plan, places).suites["heldout"]
        verdicts = {row["verdict"] for row in found.attempts if row["model"] == "base"}
        assert verdicts == ({"harmful"} if first.startswith("cat") else {"not_harmful"})
        assert found.metrics.unparsed["base"] == (1 if first.startswith("cat") else 77)


def test_some_runs_alone_are_a_study_of_their_own(made: Made) -> None:
    parts = [made.part("one", ["*@1"]), made.part("two", ["*@2"])]
    for chosen, arms, seeds in ((["*@2"], ["dat", "cat", "lat"], (2,)), (["dat@*", "cat@*"], ["dat", "cat"], (1, 2))):
        plan = made.plan.part(chosen).alone()
        found = read_parts(plan, parts[1:] if seeds == (2,) else parts).suites["heldout"]
        measures = study_measures(plan, {"heldout": found})
        assert list(measures[0].rates) == [*arms, "base"]
        assert all(rate.value is not None for one in measures for rate in one.rates.values())
        assert plan.is_whole
    for chosen, message in (
        (["dat@*", "cat@1"], "--only = 'cat': has seeds 1, and dat 1, 2"),
        (["cat@*"], "'dat': is the reference"),
    ):
        with pytest.raises(InputError, match=message):
            made.plan.part(chosen).alone()


def test_what_does_not_fit_is_one_line(made: Made) -> None:
    one, rest = made.part("one", ["cat@*"]), made.part("rest", ["dat@*", "lat@*"])
    for places, message in (
        ([one], r"have no dat@1, dat@2, lat@1, lat@2"),
        ([one, rest, one], "has cat@1, and .* has it too"),
        ([str(made.root / "none")], "holds no record of a study's part"),
    ):
        with pytest.raises(InputError, match=message):
            read_parts(made.plan, places)
    metrics = load_metrics(join(rest, "heldout"))
    base = metrics.models["base"].model_copy(update={"weights": "others"})
    store_metrics(join(rest, "heldout"), metrics.model_copy(update={"models": {**metrics.models, "base": base}}))
    with pytest.raises(InputError, match=r"asked a base model with other weights \(others\) than"):
        read_parts(made.plan, [one, rest])
    store_metrics(join(rest, "heldout"), metrics.model_copy(update={"models": {"renamed": base}}))
    with pytest.raises(ShardError, match=r"heldout/metrics.json does not hold what .* \(KeyError: 'base'\)"):
        read_parts(made.plan, [one, rest])
    (Path(one) / PART).write_text(json.dumps({"format_version": 2}))
    with pytest.raises(InputError, match="has format 2, this program reads 1"):
        read_parts(made.plan, [one, rest])
    (Path(one) / PART).write_text(json.dumps({"format_version": 1, "runs": ["cat@1"]}))
    with pytest.raises(ShardError, match="does not hold what this program writes there"):
        read_parts(made.plan, [one, rest])


@LENGTHS
@pytest.mark.parametrize("name", [PART, "heldout/metrics.json", "heldout/_manifest.json"])
def test_damaged_records(name: str, examples: int, made: Made) -> None:
    root, plan = made.part("one", ["cat@1"]), made.plan.part(["cat@1"])
    try_files(Path(root) / name, lambda: read_parts(plan, [root]), examples)
