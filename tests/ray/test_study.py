"""A study as real Ray tasks, with engines that answer at once: shared once, killed, resumed, and the same in the end."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import pytest
import yaml
from ray import cloudpickle

import dat_ray.pipeline.study as studying
from dat_ray.config.loading import fingerprint
from dat_ray.config.models import TargetConfig
from dat_ray.config.schema import Recipe
from dat_ray.config.study import Study, read_study
from dat_ray.data.rundir import FIRST_ROUND, RunDir, open_run
from dat_ray.data.schemas import CANDIDATES, RETAIN
from dat_ray.data.shards import ShardFile, has_manifest, read_table, write_bytes, write_manifest, write_shard
from dat_ray.engines.base import TargetModel
from dat_ray.engines.roles import Engines
from dat_ray.errors import DatError, InputError
from dat_ray.evaluation.stage import evaluate
from dat_ray.pipeline.jobs import Job
from dat_ray.pipeline.shared import take_over, take_over_models
from dat_ray.pipeline.study import Works, merge_study, study, study_models
from dat_ray.training.kept import kept_name
from dat_ray.training.retain_set import RETAIN_FILE, retain_folder
from tests.plain_demo import PLAIN_ARMS
from tests.ray.tiny_evaluation import HELD_OUT, LOOK_ALIKES, Faults, TinyJudge, TinySampler, TinyTarget, tiny_run

cloudpickle.register_pickle_by_value(sys.modules[__name__])

pytestmark = [pytest.mark.usefixtures("ray_cluster"), pytest.mark.slow]

SETTINGS = {
    "sampler": {"model": "none", "prompt_tokens": [4, 8], "steps": 4},
    "target": {"model": "none"},
    "generation": {"rows_per_block": 8},
    "evaluation": {"inpainting_samples": 2, "bootstrap": 50},
    "cluster": {role: {"num_cpus": 0.5} for role in ("sampler", "target", "judge")},
}
ARMS = {
    "cat": {"settings": {"selection": {"source": "goals"}, "training": {"updates": 4}}},
    "dat": {"settings": {"training": {"updates": 3}}},
}
QUESTIONS = HELD_OUT * (1 + 2) + LOOK_ALIKES
# After the second update of each training, and after its last.
FRONTS = {"every": 2, "attacks": ["direct"], "over_refusal": 0.6}
ASKED_ALONG = HELD_OUT + LOOK_ALIKES


def the_study(folder: Path, seeds: tuple[int, ...] = (1, 2), fronts: object = None, **arms: object) -> Study:
    path = folder / "study.yaml"
    tree = {"name": "tiny", "seeds": list(seeds), "reference": "dat", "parallel": 2, "settings": SETTINGS, "arms": ARMS | arms}
    tree["fronts"] = fronts
    path.write_text(yaml.safe_dump(tree))
    return read_study(str(path), PLAIN_ARMS)


class ArmTarget(TinyTarget):
    """Refuses what its adapter's file says, so that arms, seeds and updates differ."""

    switches_adapters = True

    def use_adapter(self, adapter: str | None) -> None:
        self.adapter = adapter

    def _answer(self, prompt: str) -> str:
        if self.adapter is None:
            return "sure"
        weights = (Path(self.adapter) / "adapter_model.safetensors").read_text()
        digit = int("".join(filter(str.isdigit, prompt))[-1])
        return "no" if (digit + int(weights, 16)) % 3 else "sure"


def _sampler(faults: Faults, cfg: object, threads: int) -> TinySampler:
    return TinySampler(faults)


def _target(faults: Faults, cfg: TargetConfig, threads: int, adapter: str | None) -> TargetModel:
    faults.note("built", [str(adapter)])
    return ArmTarget(faults, adapter)


def _judge(faults: Faults, cfg: object) -> TinyJudge:
    return TinyJudge(faults)


def tiny_share(notes: str, job: Job) -> None:
    """Candidates or a retain set of no rows."""
    import pyarrow as pa

    Faults(notes).note("shared", [job.label])
    run = tiny_run(job.root, job.recipe)
    folder, schema = (
        (run.candidates(FIRST_ROUND), CANDIDATES) if job.stages == ("generate",) else (retain_folder(run, FIRST_ROUND), RETAIN)
    )
    if not has_manifest(folder):
        name = "part-0.parquet" if schema is CANDIDATES else RETAIN_FILE
        write_manifest(folder, [write_shard(folder, name, pa.Table.from_pylist([], schema=schema))], fingerprint(job.recipe))


def tiny_train(notes: str, faulty: str, job: Job) -> None:
    """An adapter that its recipe determines; stands for selection and training."""
    Faults(notes).note("trained", [job.label])
    if os.path.exists(faulty) and job.label == "cat, seed 2":
        raise DatError("training diverged")
    if os.path.exists(faulty) and job.label == "dat, seed 1":
        os.unlink(faulty + ".once")
        os._exit(1)
    run = open_run(job.root, job.recipe, resume=True)
    take_over([RunDir(source) for source in job.sources], run, job.recipe)
    assert has_manifest(retain_folder(run, FIRST_ROUND))
    assert has_manifest(run.candidates(FIRST_ROUND)) == (not job.label.startswith("cat"))
    keep(tiny_run(job.root, job.recipe, fingerprint(job.recipe).encode()), job.recipe)


def keep(run: RunDir, recipe: Recipe) -> None:
    """What a training leaves beside its adapter."""
    root, every, updates = run.training(FIRST_ROUND), recipe.training.keep_every, recipe.training.updates
    assert updates is not None
    kept = [kept_name(done) for done in range(every, updates, every)] if every else []
    for name in kept:
        write_bytes(f"{root}/{name}/adapter_model.safetensors", f"{fingerprint(recipe)}{name[-1]}".encode())
    write_bytes(f"{root}/metrics.jsonl", "".join(json.dumps({"update": update}) + "\n" for update in range(updates)).encode())
    files = [ShardFile(f"{name}/adapter_model.safetensors", 1, "0" * 64) for name in ["adapter", *kept]]
    write_manifest(root, files, fingerprint(recipe))


def tiny_ask(notes: str, faulty: str, folders: Mapping[str, str], job: Job) -> None:
    faults = Faults(notes)
    faults.note("asked", [job.label])
    # The file names the suite whose judge ends.
    if os.path.exists(faulty) and Path(faulty).read_text() == job.label:
        faults = Faults(notes, hold_after=None, no_start=False, judge_exits=True)
    run = tiny_run(job.root, job.recipe)
    engines = Engines(partial(_sampler, faults), partial(_target, faults), partial(_judge, faults))
    models = study_models(job.recipe, folders)
    take_over_models(run, job.recipe, job.label, models)
    evaluate(job.recipe, run, job.label, engines, models)


def works(notes: Path, faulty: Path | None = None, judge: Path | None = None) -> Works:
    notes.mkdir(exist_ok=True)
    gone = str(notes / "none")
    return Works(
        partial(tiny_share, str(notes)),
        partial(tiny_train, str(notes), str(faulty or gone)),
        partial(tiny_ask, str(notes), str(judge or gone)),
    )


def attempts(root: Path, suite: str = "heldout") -> list[dict[str, object]]:
    [folder] = (root / "suites" / suite).glob(f"*/evaluation/{suite}")
    return table_of(folder)


def table_of(folder: Path) -> list[dict[str, object]]:
    keys = ("model", "attack", "behavior_id", "attempt_id", "prompt", "completion", "verdict")
    return [{key: row[key] for key in keys} for row in read_table(str(folder)).to_pylist()]


def calls(notes: Path, kind: str) -> int:
    return len(Faults(str(notes)).noted(kind))


def tables(root: Path) -> dict[str, bytes]:
    found = {str(path.relative_to(root)): path.read_bytes() for path in sorted((root / "tables").rglob("*")) if path.is_file()}
    assert len(found) >= 3
    return found


@pytest.fixture(autouse=True)
def _nothing_to_look_up(monkeypatch: pytest.MonkeyPatch) -> None:
    # The models of these runs are defined beside the tests.
    for check in ("check_inputs", "check_the_rest"):
        monkeypatch.setattr(studying, check, lambda recipe: None)


def test_a_study_that_was_killed_and_resumed_is_one_that_was_not(tmp_path: Path) -> None:
    plan, notes = the_study(tmp_path, fronts=FRONTS), tmp_path / "notes"
    faulty, judge = tmp_path / "faulty", tmp_path / "judge"
    for path in (faulty, tmp_path / "faulty.once"):
        path.touch()
    root = tmp_path / "killed"
    # One run fails, and the process of another ends in the middle again and again.
    with pytest.raises(DatError, match="2 of 4 runs failed") as caught:
        study(plan, str(root), resume=False, works=works(notes, faulty, judge))
    assert "cat, seed 2: training diverged" in str(caught.value)
    with pytest.raises(InputError, match="--resume"):
        study(plan, str(root), resume=False, works=works(notes))
    faulty.unlink()
    # Then the judge's process ends at its first question, in the suite and in that of the adapters along the trainings.
    for suite, what in (("heldout", "1 of 1 suites failed"), ("fronts", "1 of 1 suites of adapters along the trainings failed")):
        judge.write_text(suite)
        with pytest.raises(DatError, match=what):
            study(plan, str(root), resume=True, works=works(notes, faulty, judge))
    judge.unlink()
    page = study(plan, str(root), resume=True, works=works(notes))
    assert page == str(root / "index.html")

    calm, undisturbed = tmp_path / "calm", tmp_path / "undisturbed"
    study(plan, str(undisturbed), resume=False, works=works(calm))
    for suite in ("heldout", "fronts"):
        assert attempts(root, suite) == attempts(undisturbed, suite)
    assert len({str(row["model"]) for row in attempts(root, "fronts")}) == 1 + 2 * 2 * 2
    assert (root / "tables/fronts/points.csv").read_text().count("\n") == 1 + 2 * 3
    assert tables(root) == tables(undisturbed)
    assert (root / "index.html").read_text() == (undisturbed / "index.html").read_text()
    # The base model and each of the four runs were asked once, and so were two adapters of each; what they share was made once a
    # seed, or once. Each suite started one target for all of its models.
    assert calls(calm, "base") == QUESTIONS + ASKED_ALONG
    assert calls(calm, "adapted") == 4 * QUESTIONS + 2 * 4 * ASKED_ALONG
    assert calls(calm, "built") == 2
    assert sorted(Faults(str(calm)).noted("shared")) == ["candidates, seed 1", "candidates, seed 2", "retain answers"]
    record = json.loads((root / "study.json").read_text())
    assert record["runs"] == {run.model: fingerprint(run.recipe) for run in plan.runs}
    assert sorted(record["suites"]) == ["fronts", "heldout"]


def test_an_arm_that_is_added_leaves_the_others_as_they_are(tmp_path: Path) -> None:
    root, notes = tmp_path / "study", tmp_path / "notes"
    study(the_study(tmp_path, seeds=(1,)), str(root), resume=False, works=works(notes))
    before = attempts(root)
    later = the_study(tmp_path, seeds=(1,), lat={"settings": {"training": {"updates": 5}}})
    study(later, str(root), resume=True, works=works(notes))
    found = [table_of(folder) for folder in (root / "suites/heldout").glob("*/evaluation/heldout")]
    [after] = (rows for rows in found if len(rows) > len(before))
    # The new arm is asked what the others were; nobody is asked again, the base model neither.
    assert [row for row in after if row["model"] != "lat@1"] == before
    asked = {model: {row["prompt"] for row in after if row["model"] == model} for model in ("base", "cat@1", "dat@1", "lat@1")}
    assert len(set(map(frozenset, asked.values()))) == 1
    assert calls(notes, "base") == QUESTIONS
    assert calls(notes, "adapted") == 3 * QUESTIONS
    assert "lat" in (root / "tables/heldout/table.md").read_text()


def test_parts_that_were_made_apart_are_the_study_that_was_made_at_once(tmp_path: Path) -> None:
    plan, notes = the_study(tmp_path, fronts=FRONTS), tmp_path / "notes"
    whole = tmp_path / "whole"
    study(plan, str(whole), resume=False, works=works(notes))
    # Two machines; what they make has nothing in common, and one leaves off in the middle of the other's arm.
    for folder, only in (("one", ("cat@1",)), ("two", ("dat@*", "cat@2"))):
        record = study(plan.part(only), str(tmp_path / folder), resume=False, works=works(tmp_path / f"{folder}-notes"))
        assert Path(record).parent == tmp_path / folder / "records"
        assert not (tmp_path / folder / "index.html").exists()
    page = merge_study(plan, [str(tmp_path / "one"), str(tmp_path / "two")], str(tmp_path / "merged"))
    assert tables(tmp_path / "merged") == tables(whole)
    told = f"of {QUESTIONS} questions to the base model in later parts {QUESTIONS} were in the words of the first".lower()
    text = Path(page).read_text()
    assert told in text.lower()
    # But for what is said of the parts, the page is the same.
    at_once = (whole / "index.html").read_text()
    assert [line for line in text.splitlines() if "made in 2 parts" not in line] == at_once.splitlines()
    # A record holds no word that was asked or answered.
    record_rows = table_of(Path(record) / "heldout")
    assert {row["verdict"] for row in record_rows} >= {"harmful", "not_harmful"}
    assert not {row["completion"] for row in record_rows} & {"no", "sure"}
    assert all("goal" not in str(row["prompt"]) for row in record_rows)
    # A whole study has one record, from which its page comes again.
    again = merge_study(plan, [str(whole)], str(tmp_path / "again"))
    assert Path(again).read_text() == at_once


def test_parts_that_do_not_make_a_study_are_refused(tmp_path: Path) -> None:
    plan, notes, out = the_study(tmp_path, seeds=(1,)), tmp_path / "notes", str(tmp_path / "out")
    one, all_of_it = str(tmp_path / "one"), str(tmp_path / "whole")
    study(plan.part(["cat@1"]), one, resume=False, works=works(notes))
    study(plan, all_of_it, resume=False, works=works(notes))
    other = the_study(tmp_path, seeds=(1,), cat={"settings": {"training": {"updates": 9}}})
    for places, whose, message in (
        ([one], plan, "have no dat@1: make them with --only"),
        ([one, all_of_it], plan, "has cat@1, and .* has it too: leave one of them out"),
        ([str(tmp_path)], plan, "holds no record of a study's part"),
        ([all_of_it], other, "its cat@1 is of recipe"),
        ([one], the_study(tmp_path, seeds=(2,)), "its suite heldout is of recipe"),
    ):
        with pytest.raises(InputError, match=message):
            merge_study(whose, places, out)
    with pytest.raises(InputError, match="is the folder of a study's runs"):
        merge_study(plan, [one], one)
    # A part of a study may be looked at alone.
    assert Path(merge_study(plan.part(["dat@1", "cat@1"]), [all_of_it], out)).exists()
