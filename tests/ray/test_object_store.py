"""A run directory in an S3-compatible store: generate, kill, resume, train, report; an engine finds the adapter there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dat_ray.data.hold import OWNER
from dat_ray.data.rundir import RunDir
from dat_ray.data.shards import exists, has_manifest, join, read_bytes
from dat_ray.engines.roles import Engines
from dat_ray.errors import DatError, InputError, StorageError
from dat_ray.generation.select import select
from dat_ray.generation.stage import generate
from dat_ray.generation.watch import RowCounter
from dat_ray.models.adapters import ADAPTER_WEIGHTS
from dat_ray.models.remote import local_adapter
from dat_ray.reporting.stage import report
from dat_ray.training import driver
from dat_ray.training.update_metrics import read_metrics
from tests.ray.drivers import assert_as_undisturbed, committed, said, start_driver, wait_until
from tests.ray.tiny_generation import ROWS, ROWS_PER_BLOCK, Faults, drawn, engines, release, tiny_recipe, tiny_run
from tests.ray.tiny_training import held_worker, in_process, ready_run, tiny_training_recipe
from tests.ray.worker_processes import killed_once, training_workers, updates_kept

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_cluster")]


@pytest.mark.fault
def test_generate_kill_resume_select_report(ray_cluster: str, object_store: str, generated: RunDir, tmp_path: Path) -> None:
    recipe = tiny_recipe()
    run = tiny_run(join(object_store, "drill"), recipe)
    root, counter = run.candidates(0), RowCounter(run.candidates(0))
    first = Faults(str(tmp_path / "first"), hold_after=2 * ROWS_PER_BLOCK)
    process = start_driver(ray_cluster, run.root, first)
    wait_until(lambda: counter.count() >= 8, process)
    with pytest.raises(DatError, match=rf"in use by process {process.pid} on"):
        generate(recipe, run, engines(Faults(str(tmp_path))))
    process.kill()
    process.join()
    assert exists(join(run.root, OWNER)), said(first)
    done = committed(root)
    assert 8 <= len(done) < ROWS

    notes = tmp_path / "second"
    notes.mkdir()
    generate(recipe, run, engines(Faults(str(notes))))
    assert not done & set(drawn(notes))
    assert_as_undisturbed(run, generated)
    assert not exists(join(run.root, OWNER))
    assert select(run, recipe).kept > 0
    assert b"96 candidates for 6 training behaviors" in re.sub(rb"<[^>]+>", b"", read_bytes(report(recipe, run)))


@pytest.mark.drill
@pytest.mark.fault
def test_train_kill_resume_and_serve_the_adapter(
    object_store: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DAT_CACHE", str(tmp_path / "cache"))
    recipe = tiny_training_recipe(model, updates=12)
    run = ready_run(join(object_store, "training"), recipe)
    with (
        monkeypatch.context() as patch,
        killed_once(training_workers, lambda: updates_kept(recipe, run) >= 4, then=lambda: release(tmp_path)) as killed,
    ):
        patch.setattr(driver, "train_worker", held_worker(tmp_path, 8))
        done = driver.train(recipe, run)
    assert len(killed) == 1
    assert [row["update"] for row in read_metrics(run.training(0))] == list(range(12))
    assert has_manifest(run.training(0))

    local = local_adapter(done.adapter)
    found, expected = load_file(Path(local) / ADAPTER_WEIGHTS), in_process(recipe, run, tmp_path / "alone")
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert local_adapter(done.adapter) == local
    target = recipe.target.model_copy(update={"backend": "torch", "dtype": "float32"})
    base, adapted = (Engines().target(target, 1, adapter) for adapter in (None, done.adapter))
    assert base.logprob(["please do 1"], ["Sure, 1"]) != adapted.logprob(["please do 1"], ["Sure, 1"])
    with pytest.raises(InputError, match="holds no files"):
        local_adapter(join(object_store, "nothing"))


@pytest.mark.fault
def test_a_bucket_that_is_not_there_is_one_line(object_store: str) -> None:
    with pytest.raises(StorageError, match=r"^cannot write s3://nowhere/run/_owner.json: .*'nowhere'") as caught:
        tiny_run("s3://nowhere/run", tiny_recipe())
    assert "\n" not in str(caught.value)
