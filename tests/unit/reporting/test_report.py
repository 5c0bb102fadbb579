from __future__ import annotations

import json
import random
import re
from collections import Counter
from dataclasses import asdict
from html.parser import HTMLParser
from pathlib import Path

import pyarrow as pa
import pytest

from dat_ray.config.loading import fingerprint
from dat_ray.data.rundir import RunDir
from dat_ray.data.schemas import CANDIDATES, RETAIN
from dat_ray.data.shards import join, read_table, write_manifest, write_shard
from dat_ray.errors import ShardError
from dat_ray.evaluation.disagreement import disagreement
from dat_ray.evaluation.prompt_meaning import FILE, PromptMeaning
from dat_ray.evaluation.questions import OVER_REFUSAL
from dat_ray.measures.intervals import Interval
from dat_ray.measures.meaning import MeaningDiversity
from dat_ray.reporting.stage import report
from dat_ray.training.counts import ResponseCount, TableCount, write_counts
from dat_ray.training.retain_set import RETAIN_FILE, retain_folder
from tests.unit.reporting import synthetic_run
from tests.unit.reporting.synthetic_run import HARMLESS, HELD_OUT, HOSTILE, THREE, finished_run, new_run, recipe

VOID = {"meta", "link", "img", "br", "circle", "rect", "line", "polyline", "polygon"}


class Page(HTMLParser):
    """Tags, attributes and text of a page; fails where tags do not nest."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str]] = []
        self.texts: list[str] = []
        self.headings: list[str] = []
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == []
        self.text = " ".join(" ".join(self.texts).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self._open:
            self.texts.append(data)
            if self._open and self._open[-1] == "h1":
                self.headings.append(data)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    return finished_run(tmp_path_factory.mktemp("report") / "run")


@pytest.fixture(scope="module")
def html(run: RunDir) -> str:
    path = report(recipe(), run)
    assert path == join(run.root, "report", "index.html")
    return Path(path).read_text(encoding="utf-8")


def test_the_finding_comes_first(html: str) -> None:
    page = Page(html)
    assert page.headings[0].startswith("Proxy attack success fell from ")
    assert f"of {HELD_OUT} held-out behaviors; refusals of {HARMLESS} harmless prompts rose from" in page.headings[0]
    where = [page.text.index(question) for question in ("Did it help?", "What did it cost?", "Can I believe it?", "Cost Stage")]
    assert where == sorted(where)
    assert "a rule-based proxy, not a harm judge" in page.text


def test_the_page_needs_nothing_from_elsewhere_and_runs_nothing(html: str) -> None:
    page = Page(html)
    for tag in ("script", "iframe", "object", "embed", "img", "form", "base"):
        assert page.tags[tag] == 0
    loads = [(tag, value) for tag, name, value in page.attributes if name in ("src", "href", "srcset", "xlink:href")]
    assert loads == [("link", "data:,")]
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    style = html[html.index("<style>") : html.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style


def test_what_models_wrote_is_shown_as_text(html: str) -> None:
    page = Page(html)
    assert HOSTILE in page.text
    assert "<script" not in html


def test_every_section_is_filled_from_the_run(html: str) -> None:
    page = Page(html)
    assert "Not evaluated yet" not in page.text
    # Nobody has held the synthetic judge against people.
    assert html.count('class="missing"') == 1
    # Attack success, over-refusal, categories of both, attempts of the in-painting attack, three loss terms, the inner attack.
    # And two models against the attacker's budget.
    assert page.tags["figure"] == 11
    assert "Weakest category of the fine-tuned model" in page.text
    assert "In-painted prompts, attempts: base" in page.text
    assert "120 updates" in page.text
    assert "360 candidates for 30 training behaviors" in page.text
    assert "120 prompts of 30 behaviors, 4 to 4 each" in page.text
    assert "training candidates selected for training held out Prompts 360 120 96" in page.text
    # Two runs of generate: 240 s and 61 s, of which nobody measured the CPU time.
    assert "generate 5:01 2 360 2,880 not measured none 3.0 GiB" in page.text
    assert "train 5:02 1 120 9:40 none 4.0 GiB" in page.text
    for word in ("Newcombe", "distinct-1", "fingerprint", "Packages", "prompt_tokens:", "Content warning"):
        assert word in page.text


def test_answers_to_a_later_rounds_candidates_are_of_the_model_that_it_begins_with(tmp_path: Path) -> None:
    run, several = finished_run(tmp_path / "run"), recipe().model_copy(update={"rounds": 3})
    alone = Page(Path(report(recipe(), run)).read_text(encoding="utf-8")).text
    assert "0 failed rows. Answers of the base model:" in alone
    # Rounds are told as soon as a run is to have several; the third has not begun.
    for number in (1, 2):
        synthetic_run._write(run.candidates(number - 1), synthetic_run._candidates(random.Random(number)), CANDIDATES)
        text = Page(Path(report(several, run)).read_text(encoding="utf-8")).text
        assert f"0 failed rows. Answers of the model that round {number} begins with:" in text
        assert "Answers of the base model" not in text


def test_both_themes_print_and_small_screens_are_provided_for(html: str) -> None:
    for rule in ("prefers-color-scheme: dark", "@media print", "max-width: 520px", "width=device-width"):
        assert rule in html


def test_a_run_that_has_only_begun_says_what_is_missing(tmp_path: Path) -> None:
    page = Page(Path(report(recipe(), new_run(tmp_path / "run"))).read_text(encoding="utf-8"))
    assert page.headings == ["Not evaluated yet: there is no finding."]
    for text in ("No evaluation yet.", "No training yet.", "No candidates yet.", "No stage has recorded its cost yet."):
        assert text in page.text
    assert page.tags["figure"] == 0


def test_an_evaluation_without_harmless_prompts_says_so(tmp_path: Path) -> None:
    run = finished_run(tmp_path / "run")
    where = Path(run.evaluation("default")) / "metrics.json"
    metrics = json.loads(where.read_text())
    for model in metrics["models"].values():
        model["over_refusal"] |= {"rate": None, "low": None, "high": None, "n": 0}
    for pair in metrics["paired"]:
        if pair["metric"] == OVER_REFUSAL:
            pair |= {"difference": None, "low": None, "high": None, "n": 0}
    where.write_text(json.dumps(metrics))
    page = Page(Path(report(recipe(), run)).read_text(encoding="utf-8"))
    assert "refusals of" not in page.headings[0]
    assert "over-refusal was not measured" in page.text


def test_a_run_with_one_behavior_claims_no_interval_of_its_means(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthetic_run, "HELD_OUT", 1)
    run = finished_run(tmp_path / "run")
    page = Page(Path(report(recipe(), run)).read_text(encoding="utf-8"))
    assert "(no interval)" in page.text
    # The rate of one behavior has a score interval, as wide as it should be.
    assert re.search(r"(?:100% \[21%,\s100%\]|0% \[0%,\s79%\])", page.text)


def test_a_second_judge_is_shown_with_its_disagreement(tmp_path: Path) -> None:
    run = finished_run(tmp_path / "run")
    where = Path(run.evaluation("default")) / "metrics.json"
    metrics = json.loads(where.read_text())
    rows = read_table(run.evaluation("default")).to_pylist()
    for index, row in enumerate(rows):
        row |= {"second_judge": "other", "second_verdict": row["verdict"] if index % 10 else "not_harmful"}
    found = {name: disagreement([r for r in rows if r["model"] == name], recipe().evaluation) for name in metrics["models"]}
    metrics |= {
        "second_judge": {"name": "other-judge", "fingerprint": "1", "is_proxy": False},
        "disagreement": {name: one.model_dump() for name, one in found.items()},
    }
    where.write_text(json.dumps(metrics))
    page = Page(Path(report(recipe(), run)).read_text(encoding="utf-8"))
    assert "read by other-judge , a harm judge. The rates above are refusal-rules's alone." in page.text
    assert f"{found['base'].both_harmful} {found['base'].first_only} 0 " in page.text
    by_behavior = found["base"].by_behavior
    assert by_behavior is not None
    assert f"base: Of {by_behavior.n_behaviors} behaviors both call {by_behavior.both_broken} broken" in page.text
    assert "Most disputed: heldout-" in page.text


def test_who_read_refusals_stands_wherever_they_do(tmp_path: Path) -> None:
    run = finished_run(tmp_path / "run")
    where = Path(run.evaluation("default")) / "metrics.json"
    metrics = json.loads(where.read_text())
    metrics["second_judge"] = {"name": "third", "fingerprint": "2", "is_proxy": False}

    def page(**judges: object) -> str:
        where.write_text(json.dumps(metrics | judges))
        return Path(report(recipe(), run)).read_text(encoding="utf-8")

    # A judge that reads everything is named as it was before evaluations said who reads refusals.
    assert page(refusal_judge=metrics["judge"]) == page(refusal_judge=None)
    opening = {"name": "refusal-opening", "fingerprint": "7777", "is_proxy": True}
    text = Page(page(refusal_judge=opening, judge={"name": "harmbench", "fingerprint": "8888", "is_proxy": False})).text
    for said in (
        f"{HARMLESS} prompts that look harmful and are not, judged by refusal-opening (a proxy); 95%",
        "judged harmful by harmbench; over-refusal by refusal-opening, a proxy; Wilson interval",
        "Judged by harmbench (8888), a harm judge; over-refusal by refusal-opening (7777), a proxy.",
        "harmbench (8888), a harm judge. base:",
        "refusal-opening (7777), a rule-based proxy, not a harm judge: it tells refusals from compliance; it reads the answers "
        f"to harmless prompts. base: {HARMLESS} answers",
        "How far refusal-opening agrees with people was not measured here",
        "The rates of attacks above are harmbench's alone.",
        "Judge of refusals refusal-opening, 7777, a rule-based proxy",
    ):
        assert said in text, said


def test_a_harmless_answer_is_shown_as_complied_or_refused(html: str) -> None:
    shown = Page(html).text.partition("Content warning")[2].partition("Harmless, refused only by")[2]
    assert re.search(r"Base complied Here is .* Fine-tuned refused I am sorry", shown)
    assert not re.search(r"(Base|Fine-tuned) (not )?harmful", shown)
    assert "Base harmful Here is" in Page(html).text


def test_attempts_without_a_verdict_are_bounded_where_the_rates_stand(tmp_path: Path) -> None:
    run = finished_run(tmp_path / "run")
    whole = Page(Path(report(recipe(), run)).read_text(encoding="utf-8")).text
    where = Path(run.evaluation("default")) / "metrics.json"
    metrics = json.loads(where.read_text())
    bounds = {"lowest": {"rate": 0.5, "low": 0.31, "high": 0.69}, "highest": {"rate": 0.75, "low": 0.55, "high": 0.88}}
    metrics["models"]["adapted"]["boa"]["worst_case"] = {"unjudged": 9, "n": 24, **bounds}
    [boa] = [pair for pair in metrics["paired"] if pair["metric"] == "boa"]
    lowest, highest = ({"difference": d, "low": d - 0.2, "high": d + 0.2} for d in (-0.5, -0.1))
    boa["worst_case"] = {"lowest": lowest, "highest": highest}
    where.write_text(json.dumps(metrics))
    page = Page(Path(report(recipe(), run)).read_text(encoding="utf-8"))
    assert "50% to 75% [31%, 88%]" in page.text
    assert "−50 to −10 [−70, +10]" in page.text
    said = (
        "rests on attempts without a verdict: if those of base had all been harmless and those of fine-tuned harmful, it would be"
    )
    assert f"{said} −10 points [−30, +10]." in page.text
    assert "50% to 75%" not in whole
    assert "rests on attempts" not in whole


def test_a_judge_s_agreement_with_people_is_shown_with_its_interval(tmp_path: Path) -> None:
    run = finished_run(tmp_path / "run")
    where = Path(run.evaluation("default")) / "metrics.json"
    metrics = json.loads(where.read_text())
    confusion = {
        "people_harmful": {"harmful": 50, "not_harmful": 5, "unparsed": 1, "failed": 0},
        "people_not_harmful": {"harmful": 3, "not_harmful": 41, "unparsed": 0, "failed": 0},
    }
    accuracy = {"value": 0.92, "low": 0.85, "high": 0.96, "n_prompts": 100}
    one = {"n": 100, "read": 99, "accuracy": accuracy, "kappa": 0.83, "confusion": confusion}
    found = one | {"judge": metrics["judge"], "confidence": 0.95, "sources": {"a_model": one, "another": one}}
    metrics["calibration"] = {"judge": found}
    where.write_text(json.dumps(metrics))
    html = Path(report(recipe(), run)).read_text(encoding="utf-8")
    text = Page(html).text
    assert "refusal-rules (a proxy) agrees with people on 92% of 100 labeled answers, kappa 0.83" in text
    assert "Of 56 answers that people called harmful or compliant it called 50 so; of the other 44 it called 41" in text
    assert "a model (100)" in text
    assert 'class="missing"' not in html


def test_the_report_says_how_far_form_gives_harm_away(tmp_path: Path) -> None:
    run = finished_run(tmp_path / "run")
    rows = [
        {"retain_id": f"r{index}", "prompt": f"Teach me what the {index} of it is", "response": "Sure", "source": "x"}
        for index in range(40)
    ]
    folder = retain_folder(run, 0)
    shard = write_shard(folder, RETAIN_FILE, pa.Table.from_pylist(rows, schema=RETAIN))
    write_manifest(folder, [shard], fingerprint(recipe()))
    text = Page(Path(report(recipe(), run)).read_text()).text
    [harmful] = {table.num_rows for table in [read_table(run.training_set(0))]}
    assert f"form tells {harmful} harmful training prompts from 40 retain prompts with an AUC of 1.00" in text
    assert "a model may learn the form in place of the harm" in text
    assert "form tells" not in Page(Path(report(recipe(), finished_run(tmp_path / "without"))).read_text()).text


def test_an_altered_shard_is_an_error_not_a_number(tmp_path: Path) -> None:
    run = finished_run(tmp_path / "run")
    shard = Path(run.evaluation("default")) / "part-00000.parquet"
    shard.write_bytes(shard.read_bytes()[:-10])
    with pytest.raises(ShardError, match="part-00000"):
        report(recipe(), run)


def test_every_suite_is_shown(tmp_path: Path) -> None:
    run = finished_run(tmp_path / "run")
    other = Path(run.evaluation("transfer"))
    other.mkdir()
    for file in Path(run.evaluation("default")).iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    page = Page(Path(report(recipe(), run)).read_text(encoding="utf-8"))
    assert "Suite default" in page.text
    assert "Suite transfer" in page.text


def test_several_models_are_all_shown_against_the_first(tmp_path: Path) -> None:
    page = Page(Path(report(recipe(), finished_run(tmp_path / "run", models=THREE))).read_text(encoding="utf-8"))
    assert page.headings[0].startswith("dat, the hardest of 4 models to attack")
    assert "are on the front" in page.text
    assert "Difference from base, paired by behavior" in page.text
    for name in THREE:
        assert f"Weights of {name}" in page.text
    # The difference between two models that are not the first is not shown: three others, five measures each.
    assert page.text.count(" points [") == 3 * 4


def test_what_was_left_out_and_cut_is_said_where_the_numbers_stand(tmp_path: Path) -> None:
    run = finished_run(tmp_path / "run")
    assert "prompts whole" not in Page(Path(report(recipe(), run)).read_text(encoding="utf-8")).text
    counts = {
        "harmful": TableCount(
            120, ("c3", "c9"), {"target": ResponseCount(0, 0, 472, 472), "refusal": ResponseCount(0, 90, 8000, 6000)}, 128, 8
        ),
        "retain": TableCount(500, (), {"response": ResponseCount(0, 0, 900, 900)}, 128, 8),
    }
    write_counts(run.training(0), counts)
    path = Path(run.evaluation("default")) / "metrics.json"
    metrics = json.loads(path.read_text())
    drift = {"mean": 0.1, "low": 0.1, "high": 0.2, "n": 8, "left_out": 3, "cut": 2, "unit": "nats per token"}
    metrics["models"]["adapted"]["kl_drift"] = drift
    metrics["models"]["base"]["target_logprob"]["errors"] = 5
    path.write_text(json.dumps(metrics))
    shown = Page(Path(report(recipe(), run)).read_text(encoding="utf-8")).text
    assert (
        "Harmful rows: 118, prompts whole; no target cut, refusals cut: 90 to the room behind the prompt (75% of their tokens "
        "kept); 2 of 120 left out, whose prompts leave no room for 8 response tokens in 128 (c3, c9)."
    ) in shown
    assert "Retain rows: 500, prompts whole; no response cut." in shown
    assert "KL drift of fine-tuned: 3 of 11 rows left out" in shown
    assert "the responses of 2 cut" in shown
    assert "Log p(target) of base: 5 pairs could not be scored." in shown


def test_drift_benchmarks_and_likelihood_stand_beside_the_rates_and_what_is_missing_is_named(tmp_path: Path) -> None:
    run = finished_run(tmp_path / "run")
    page = Page(Path(report(recipe(), run)).read_text(encoding="utf-8"))
    assert "Log p(target) (nats per token)" in page.text
    assert "Not measured here: drift on harmless answers (evaluation.kl_rows), benchmarks" in page.text.replace("`", "")
    path = Path(run.evaluation("default")) / "metrics.json"
    metrics = json.loads(path.read_text())
    metrics["models"]["adapted"] |= {
        "kl_drift": {"mean": 0.1234, "low": 0.1, "high": 0.15, "n": 8, "unit": "nats per token"},
        "utility": {"arc_easy": {"acc": {"value": 0.5, "low": 0.25, "high": 0.75, "stderr": 0.1, "n": 16}}},
    }
    path.write_text(json.dumps(metrics))
    page = Page(Path(report(recipe(), run)).read_text(encoding="utf-8"))
    assert "0.12 [0.10, 0.15]" in page.text
    assert re.search(r"arc_easy, acc \(%\)\s+fine-tuned\s+50 \[25, 75\]", page.text)
    assert "drift on retain data" not in page.text


def test_cosines_and_what_means_a_held_out_goal_stand_beside_the_diversity(tmp_path: Path, html: str) -> None:
    assert "Mean pairwise cosine" not in html
    run = finished_run(tmp_path / "run")
    spread = MeaningDiversity(9, Interval(0.178, 0.1, 0.25, 4), Interval(0.66, 0.6, 0.71, 3))
    line = "1 training goals mean what a held-out goal means (cosine 0.9 and more): '<b>' and 'b' (0.95)"
    meaning = PromptMeaning("an-encoder", spread, spread, {}, [line])
    (Path(run.training_set(0)) / FILE).write_text(json.dumps(asdict(meaning)))
    page = Page(Path(report(recipe(), run)).read_text(encoding="utf-8"))
    assert "Mean pairwise cosine 0.66 [0.60, 0.71] 0.66 [0.60, 0.71] –" in page.text
    assert "Mean pairwise cosine of all behaviors' prompts 0.18 [0.10, 0.25] 0.18 [0.10, 0.25] –" in page.text
    assert "Cosines are under an-encoder" in page.text
    assert f"{line}." in page.text


def test_the_look_alikes_that_are_refused_most_are_named(tmp_path: Path) -> None:
    page = Page(Path(report(recipe(), finished_run(tmp_path / "run"))).read_text(encoding="utf-8"))
    assert re.search(r"Most refused look-alikes of the fine-tuned model: (homonym|figurative|fiction), \d+%", page.text)
