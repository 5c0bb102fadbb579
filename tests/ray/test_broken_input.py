"""Inputs that are broken and storage that is full: one clear line each, and nothing finished is lost."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from dat_ray.cli import main
from dat_ray.data.rundir import RunDir
from dat_ray.data.shards import MANIFEST, has_manifest, read_manifest, read_table
from dat_ray.errors import DatError, InputError, StorageError
from dat_ray.generation.finish import CHECKPOINT
from dat_ray.generation.stage import generate
from dat_ray.generation.watch import RowCounter
from dat_ray.models.adapters import ADAPTER_WEIGHTS, attach_lora, save_adapter
from dat_ray.models.loading import load_causal_lm
from dat_ray.training import driver
from dat_ray.training import train_workers as workers
from dat_ray.training.trained import trained_files
from tests.ray.tiny_generation import ROWS, Faults, drawn, engines, release, tiny_recipe, tiny_run
from tests.ray.tiny_training import held_worker, in_process, ready_run, tiny_training_recipe
from tests.ray.worker_processes import ray_workers, training_workers, updates_kept

# What the system says where a quota ends; a full disk says "No space left on device".
FULL = r"cannot write .*File too large.*what was finished before is kept"

pytestmark = pytest.mark.usefixtures("ray_cluster")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def cut_short(shard: Path) -> None:
    os.truncate(shard, shard.stat().st_size // 2)


def flip_one_byte(shard: Path) -> None:
    """Flips the last bit of the column `prompt`, which changes a letter or breaks nothing that a reader notices."""
    columns = pq.read_metadata(shard).row_group(0)
    prompt = next(columns.column(i) for i in range(columns.num_columns) if columns.column(i).path_in_schema == "prompt")
    data = bytearray(shard.read_bytes())
    data[(prompt.dictionary_page_offset or prompt.data_page_offset) + prompt.total_compressed_size - 1] ^= 1
    shard.write_bytes(data)


def wrong_sha256(shard: Path) -> None:
    manifest = shard.with_name(MANIFEST)
    tree = json.loads(manifest.read_text())
    entry = next(file for file in tree["files"] if file["path"] == shard.name)
    entry["sha256"] = "0" * 64
    manifest.write_text(json.dumps(tree))


@pytest.mark.fault
@pytest.mark.parametrize("damage", [cut_short, flip_one_byte, wrong_sha256])
def test_a_stage_refuses_a_shard_that_is_not_what_its_manifest_says(
    generated: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: Callable[[Path], None]
) -> None:
    shutil.copytree(generated.root, tmp_path / "run")
    folder = Path(RunDir(str(tmp_path / "run")).candidates(0))
    shard = folder / read_manifest(str(folder)).files[2].path
    damage(shard)
    before = contents(folder)
    assert main(["select", "--run-dir", str(tmp_path / "run")]) == 1
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith(f"dat select: {shard} has sha256 ")
    assert "its manifest says" in message
    assert contents(folder) == before, "what is there is evidence: nobody touches it"
    assert not (tmp_path / "run" / "training_set").exists()

    shutil.copyfile(Path(generated.candidates(0)) / shard.name, shard)
    shutil.copyfile(Path(generated.candidates(0)) / MANIFEST, folder / MANIFEST)
    assert main(["select", "--run-dir", str(tmp_path / "run")]) == 0


@contextmanager
def small_quota(
    processes: Callable[[], list[psutil.Process]], when: Callable[[], bool], limit: int, notes: Path
) -> Iterator[None]:
    """No file of these processes may grow past `limit` bytes from the moment on when `when()` holds; then engines are released.

    The system then answers a write as it does on a full disk, with another number.
    """
    stop = threading.Event()
    limited: dict[int, tuple[psutil.Process, tuple[int, int]]] = {}

    def squeeze() -> None:
        while not stop.wait(0.05):
            if not limited and not when():
                continue
            for process in processes():
                try:
                    soft, hard = process.rlimit(psutil.RLIMIT_FSIZE)
                    if process.pid not in limited:
                        process.rlimit(psutil.RLIMIT_FSIZE, (limit, hard))
                        limited[process.pid] = (process, (soft, hard))
                except psutil.NoSuchProcess:
                    continue
            if limited:
                release(notes)

    thread = threading.Thread(target=squeeze)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        for process, before in limited.values():
            if process.is_running():
                process.rlimit(psutil.RLIMIT_FSIZE, before)
    assert limited, "the drill was over before it began"


@pytest.mark.fault
@pytest.mark.slow
def test_a_disk_that_fills_up_while_sampling(generated: RunDir, tmp_path: Path) -> None:
    recipe = tiny_recipe()
    run = tiny_run(tmp_path / "run", recipe)
    folder = Path(run.candidates(0))
    counter = RowCounter(str(folder))
    quota = small_quota(ray_workers, lambda: counter.count() >= 16, limit=2048, notes=tmp_path)
    with quota, pytest.raises(StorageError, match=FULL) as caught:
        generate(recipe, run, engines(Faults(str(tmp_path), hold_after=48)))
    assert "\n" not in str(caught.value)
    done = RowCounter(str(folder)).count()
    assert 16 <= done < ROWS
    assert not has_manifest(str(folder))
    finished = {path: path.read_bytes() for path in (folder / CHECKPOINT).glob("*.parquet")}

    notes = tmp_path / "after"
    notes.mkdir()
    generate(recipe, run, engines(Faults(str(notes))))
    assert len(drawn(notes)) == ROWS - done, "rows that were safe are not made again"
    assert all(path.read_bytes() == data for path, data in finished.items() if not path.name.endswith(".pending.parquet"))
    key = "candidate_id"
    assert read_table(str(folder)).sort_by(key).equals(read_table(generated.candidates(0)).sort_by(key))


@pytest.mark.drill
@pytest.mark.fault
@pytest.mark.slow
def test_a_disk_that_fills_up_while_training(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = tiny_training_recipe(model)
    run = ready_run(tmp_path / "run", recipe)
    monkeypatch.setattr(workers, "MAX_FAILURES", 0)
    quota = small_quota(training_workers, lambda: updates_kept(recipe, run) >= 8, limit=2048, notes=tmp_path)
    with monkeypatch.context() as patch, quota, pytest.raises(DatError, match=FULL) as caught:
        patch.setattr(driver, "train_worker", held_worker(tmp_path, 12))
        driver.train(recipe, run)
    assert "\n" not in str(caught.value)
    kept = updates_kept(recipe, run)
    assert 8 <= kept < 24
    assert not has_manifest(run.training(0))

    report = driver.train(recipe, run)
    found, expected = load_file(Path(report.adapter) / ADAPTER_WEIGHTS), in_process(recipe, run, tmp_path / "alone")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.drill
@pytest.mark.slow
def test_an_adapter_of_another_base_model_is_told_once(model: Path, tmp_path: Path) -> None:
    """Round 1 goes on from the adapter of round 0, which here belongs to a model that is not the target."""
    recipe = tiny_training_recipe(model)
    run = ready_run(tmp_path / "run", recipe, round_index=1)
    stray = attach_lora(load_causal_lm(str(model), "float32"), recipe.training.lora, 0)
    save_adapter(stray, run.adapter(0), "another-model")
    driver.write_manifest(run.training(0), trained_files(run.training(0)), "f" * 16)
    before = contents(Path(run.training(0)))
    with pytest.raises(InputError, match="adapter of another base model: trained on another-model"):
        driver.train(recipe, run, round_index=1)
    assert contents(Path(run.training(0))) == before
    assert not has_manifest(run.training(1))
