"""Sweeps as real Ray tasks: shared once, resumed, and a point that fails or dies does not stop the others."""

from __future__ import annotations

import csv
import json
import os
import sys
from functools import partial
from pathlib import Path

import pytest
from ray import cloudpickle

import dat_ray.pipeline.sweep as sweeping
from dat_ray.config.loading import fingerprint
from dat_ray.config.sweep import Plan, read_sweep
from dat_ray.data.rundir import RunDir, open_run
from dat_ray.data.schemas import CANDIDATES
from dat_ray.data.shards import has_manifest, read_manifest, read_table
from dat_ray.errors import DatError, InputError
from dat_ray.evaluation.compared import Model
from dat_ray.evaluation.stage import evaluate
from dat_ray.pipeline.jobs import Job
from dat_ray.pipeline.shared import take_over
from dat_ray.pipeline.sweep import SUITE, sweep
from tests.plain_demo import PLAIN
from tests.ray.tiny_evaluation import HELD_OUT, LOOK_ALIKES, Faults, engines, tiny_run

cloudpickle.register_pickle_by_value(sys.modules[__name__])

pytestmark = pytest.mark.usefixtures("ray_cluster")

SETTINGS = (
    *PLAIN,
    "sampler.model=none",
    "target.model=none",
    "sampler.prompt_tokens=[4, 8]",
    "sampler.steps=4",
    "evaluation.inpainting_samples=2",
    "evaluation.bootstrap=50",
    "generation.rows_per_block=8",
    *(f"cluster.{role}.num_cpus=0.5" for role in ("sampler", "target", "judge")),
)


@pytest.fixture
def plan(monkeypatch: pytest.MonkeyPatch) -> Plan:
    # The models of these runs are defined beside the tests: there is nothing to look up.
    monkeypatch.setattr(sweeping, "check_inputs", lambda recipe: None)
    return read_sweep("demo", SETTINGS, ["training.retain_weight=1,2", "training.attack.steps=0,2"], parallel=2)


def tiny_share(notes: str, job: Job) -> None:
    """The base model's answers, by tiny engines; the candidates are one empty shard."""
    import pyarrow as pa

    from dat_ray.data.shards import write_manifest, write_shard

    Faults(notes).note("shared", [job.root])
    run = tiny_run(job.root, job.recipe)
    root = run.candidates(0)
    if not has_manifest(root):
        shard = write_shard(root, "part-0.parquet", pa.Table.from_pylist([], schema=CANDIDATES))
        write_manifest(root, [shard], fingerprint(job.recipe))
    evaluate(job.recipe, run, engines=engines(Faults(notes)), models=[Model("base", None, "none")])


def tiny_point(notes: str, broken: str, job: Job) -> None:
    """The adapted model's answers, on what was shared; stands for all stages."""
    Faults(notes).note("points", [job.label])
    if os.path.exists(broken) and "retain_weight = 2, steps = 0" in job.label:
        raise DatError("training diverged")
    if os.path.exists(broken) and "retain_weight = 2, steps = 2" in job.label:
        raise RuntimeError("nobody foresaw this")
    run = open_run(job.root, job.recipe, resume=True)
    take_over([RunDir(job.sources[0])], run, job.recipe, SUITE)
    tiny_run(job.root, job.recipe)
    evaluate(job.recipe, run, engines=engines(Faults(notes)))


@pytest.mark.slow
def test_points_share_what_is_the_same_and_failures_are_told(plan: Plan, tmp_path: Path) -> None:
    notes, broken, root = tmp_path / "notes", tmp_path / "broken", tmp_path / "sweep"
    notes.mkdir()
    broken.touch()
    faults = Faults(str(notes))
    share, work = partial(tiny_share, str(notes)), partial(tiny_point, str(notes), str(broken))
    with pytest.raises(DatError, match="2 of 4 points failed") as caught:
        sweep(plan, str(root), resume=False, share=share, work=work)
    assert "training diverged" in str(caught.value)
    assert "RuntimeError: nobody foresaw this" in str(caught.value)
    # One set of shared stages; the base model answered there and nowhere else.
    assert len(faults.noted("shared")) == 1
    base_questions = len(faults.noted("base"))
    assert base_questions == HELD_OUT * (1 + 2) + LOOK_ALIKES
    assert len(faults.noted("adapted")) == 2 * base_questions
    rows = list(csv.DictReader((root / "front.csv").open()))
    assert [row["point"] for row in rows if row["error"]] == ["retain_weight = 2, steps = 0", "retain_weight = 2, steps = 2"]
    assert "2 of 4 points failed" in (root / "index.html").read_text()

    # A point is a run directory of its own.
    point = plan.points[0]
    own = RunDir(str(root / "points" / point.name))
    assert read_manifest(own.candidates(0), fingerprint=fingerprint(point.recipe)).rows == 0
    assert {row["model"] for row in read_table(own.evaluation("default")).to_pylist()} == {"base", "adapted"}

    with pytest.raises(InputError, match="--resume"):
        sweep(plan, str(root), resume=False, share=share, work=work)
    broken.unlink()
    page = sweep(plan, str(root), resume=True, share=share, work=work)
    assert page == str(root / "index.html")
    # What had finished was asked nothing again.
    assert len(faults.noted("base")) == base_questions
    assert len(faults.noted("adapted")) == 4 * base_questions
    assert [point["error"] for point in json.loads((root / "sweep.json").read_text())["points"]] == [None] * 4


def test_points_whose_shared_part_failed_are_told_and_not_started(plan: Plan, tmp_path: Path) -> None:
    def no_share(job: Job) -> None:
        raise DatError("no sampler")

    (tmp_path / "notes").mkdir()
    with pytest.raises(DatError, match=r"4 of 4 points failed .*no sampler"):
        sweep(plan, str(tmp_path / "sweep"), resume=False, share=no_share, work=partial(tiny_point, str(tmp_path / "notes"), ""))
    assert Faults(str(tmp_path / "notes")).noted("points") == []
