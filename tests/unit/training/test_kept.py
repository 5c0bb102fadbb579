"""Adapters that a training keeps on its way: those of an undisturbed one, whatever ended it in between."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from dat_ray.config.training import TrainingConfig
from dat_ray.data.rundir import RunDir
from dat_ray.data.shards import write_manifest
from dat_ray.errors import StorageError
from dat_ray.models.adapters import ADAPTER_WEIGHTS, save_adapter
from dat_ray.models.chat import Encoded
from dat_ray.training import driver, kept
from dat_ray.training.batches import HarmfulRow
from dat_ray.training.checkpoint import FolderCheckpoints, RunFingerprint
from dat_ray.training.fine_tuning import TrainingRows, fine_tune
from dat_ray.training.kept import AdapterKeeper, adapters_along, is_kept, kept_name
from dat_ray.training.network import Network
from dat_ray.training.step import FineTuning
from dat_ray.training.trained import trained_files
from dat_ray.training.trainer import SINGLE_WORKER, Trainer, TrainingFiles, WorkerInfo
from tests.ray.tiny_training import in_process, ready_run, save_tiny_chat_model, tiny_training_recipe
from tests.unit.training.kills import Killed, killer

MakeNetwork = Callable[..., Network]
MakeConfig = Callable[..., TrainingConfig]
UPDATES, EVERY = 8, 2


@pytest.fixture
def rows(harmful_rows: list[HarmfulRow], retain_rows: list[Encoded]) -> TrainingRows:
    return TrainingRows(harmful_rows, retain_rows)


def train(
    network: Network, rows: TrainingRows, cfg: TrainingConfig, root: Path, every: int | None, worker: WorkerInfo = SINGLE_WORKER
) -> dict[str, Tensor]:
    """Trains, keeping adapters, and saves the final one as the driver does."""
    scratch = root / "scratch"
    scratch.mkdir(parents=True, exist_ok=True)
    save = partial(save_adapter, network.model, base_fingerprint="0" * 16)
    assert cfg.updates is not None
    keeper = AdapterKeeper(str(root), every, cfg.updates, save, scratch) if every else None
    files = TrainingFiles(RunFingerprint("0" * 16), FolderCheckpoints(root / "checkpoints"), keep=keeper)
    fine_tune(network, rows, cfg, 3, files, worker)
    save(str(root / "adapter"))
    return load_file(root / "adapter" / ADAPTER_WEIGHTS)


def kept_files(root: Path) -> dict[str, bytes]:
    found = {str(path.relative_to(root)): path.read_bytes() for path in (root / "kept").rglob("*") if path.is_file()}
    assert all(map(is_kept, found))
    return found


def test_a_training_that_is_killed_anywhere_keeps_the_adapters_of_one_that_is_not(
    make_network: MakeNetwork, make_config: MakeConfig, rows: TrainingRows, tmp_path: Path
) -> None:
    # A checkpoint after every third update, an adapter after every second: they coincide once only.
    cfg, fresh = make_config(updates=UPDATES), partial(make_network, adapted=False)
    train(fresh(), rows, cfg, tmp_path / "whole", EVERY)
    whole = kept_files(tmp_path / "whole")
    assert sorted({name.rpartition("/")[0] for name in whole}) == [kept_name(number) for number in (2, 4, 6)]
    assert len(set(whole.values())) > 3
    for calls in (5, 9):
        torn = tmp_path / f"torn-{calls}"
        with pytest.raises(Killed):
            train(fresh(), rows, cfg, torn, EVERY, WorkerInfo(reduce=killer(calls)))
        train(fresh(), rows, cfg, torn, EVERY)
        assert kept_files(torn) == whole


def test_one_that_is_killed_before_its_checkpoint_is_written_has_the_adapter_already(
    make_network: MakeNetwork, make_config: MakeConfig, rows: TrainingRows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An adapter that came after the checkpoint of its update would be missed by who goes on from there."""
    cfg, fresh, root = make_config(updates=4, checkpoint_every=2), partial(make_network, adapted=False), tmp_path / "torn"
    train(fresh(), rows, cfg, tmp_path / "whole", 2)
    publish = kept.publish_folder

    def refused(*_: object) -> None:
        raise StorageError("no space left")

    monkeypatch.setattr(kept, "publish_folder", refused)
    with pytest.raises(StorageError):
        train(fresh(), rows, cfg, root, 2)
    assert FolderCheckpoints(root / "checkpoints").kept() == []
    monkeypatch.setattr(kept, "publish_folder", publish)
    train(fresh(), rows, cfg, root, 2)
    assert kept_files(root) == kept_files(tmp_path / "whole")


def test_a_kept_adapter_is_the_end_of_a_shorter_training_and_changes_no_weight(
    make_network: MakeNetwork, make_config: MakeConfig, rows: TrainingRows, tmp_path: Path
) -> None:
    # At one rate from the first update to the last, so that the schedule does not tell the two apart.
    cfg = partial(make_config, schedule="constant", warmup=0.0)
    long = train(make_network(adapted=False), rows, cfg(updates=6), tmp_path / "long", 4)
    short = train(make_network(adapted=False), rows, cfg(updates=4), tmp_path / "short", 4)
    at_four = load_file(tmp_path / "long" / kept_name(4) / ADAPTER_WEIGHTS)
    assert all(torch.equal(at_four[name], short[name]) for name in short)
    assert any(not torch.equal(long[name], short[name]) for name in short)
    # After the last update it is the training's own.
    assert not (tmp_path / "short" / "kept").exists()
    without = train(make_network(adapted=False), rows, cfg(updates=6), tmp_path / "without", None)
    assert all(torch.equal(long[name], without[name]) for name in long)


def test_what_a_kill_left_half_written_is_no_kept_adapter() -> None:
    assert is_kept("kept/update-00000008/adapter_model.safetensors")
    for path in ("kept/update-00000008.0123456789abcdef.partial/x", "kept/update-8/x", "adapter/x", "kept/update-00000008/a/b"):
        assert not is_kept(path)


def test_a_worker_keeps_adapters_where_they_are_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver's own work, without the processes of Ray Train; killed once, and whole."""
    save_tiny_chat_model(tmp_path / "model")
    recipe = tiny_training_recipe(tmp_path / "model", updates=6, keep_every=2)
    monkeypatch.setattr(driver, "this_worker", lambda: SINGLE_WORKER)
    monkeypatch.setattr(driver, "get_device", lambda: torch.device("cpu"))
    monkeypatch.setattr(driver, "RayCheckpoints", lambda root, _worker: FolderCheckpoints(root))
    take_update = FineTuning.update

    def killed(objective: FineTuning, trainer: Trainer, update: int) -> dict[str, Any]:
        if update == 5:
            raise Killed
        return take_update(objective, trainer, update)

    found = {}
    for name in ("whole", "torn"):
        run = ready_run(tmp_path / name, recipe)
        settings = {"recipe": recipe.model_dump_json(), "root": run.root, "model": str(tmp_path / "model"), "round": "0"}
        if name == "torn":
            with monkeypatch.context() as patch, pytest.raises(Killed):
                patch.setattr(FineTuning, "update", killed)
                driver._work(settings)
        driver._work(settings)
        write_manifest(run.training(0), trained_files(run.training(0)), run.fingerprint_of(recipe))
        along = adapters_along(run, recipe, 2)
        assert list(along) == [2, 4, 6]
        assert along[6] == run.adapter(0)
        found[name] = [load_file(Path(folder) / ADAPTER_WEIGHTS) for folder in along.values()]
    for whole, torn in zip(found["whole"], found["torn"], strict=True):
        assert whole.keys() == torn.keys()
        assert all(torch.equal(whole[key], torn[key]) for key in whole)
    expected = in_process(recipe, RunDir(str(tmp_path / "whole")), tmp_path / "alone")
    assert all(torch.equal(found["whole"][-1][key], expected[key]) for key in expected)
    assert any(not torch.equal(found["whole"][0][key], expected[key]) for key in expected)
