"""Ray Train's list of checkpoints, read by Ray itself for what it would do with an altered one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ray.train.v2._internal.execution.checkpoint.checkpoint_manager import _CheckpointManagerState

from dat_ray.errors import DatError
from dat_ray.training.snapshot import check_snapshot


def snapshot(**changes: Any) -> str:
    result = {"checkpoint_dir_name": "checkpoint_2026-11-26_10-00-00.123456", "metrics": {"updates_done": 4}}
    tree: dict[str, Any] = {
        "checkpoint_results": [result],
        "checkpoint_report_indices": [0],
        "latest_checkpoint_result": result,
        "pending_training_results": [],
        "pending_validation_specs": [],
        "current_report_index": 1,
        "validated_checkpoint_dir_names": [],
        "timed_out_validation_checkpoint_dir_names": [],
        "failed_validation_checkpoint_dir_names": [],
    }
    # Ray takes it: what these tests alter is what Ray would act on.
    return _CheckpointManagerState.model_validate(tree | changes).model_dump_json()


def store(root: Path, text: str) -> None:
    (root / "state-1").mkdir(parents=True, exist_ok=True)
    (root / "state-1" / "checkpoint_manager_snapshot.json").write_text(text)


def test_what_ray_writes_is_taken(tmp_path: Path) -> None:
    check_snapshot(str(tmp_path), "state-1")
    store(tmp_path, snapshot())
    check_snapshot(str(tmp_path), "state-1")
    store(tmp_path, snapshot()[:40])
    check_snapshot(str(tmp_path), "state-1")


@pytest.mark.parametrize("folder", ["../../../home", "/etc", "..", ""])
@pytest.mark.parametrize(
    "field", ["checkpoint_results", "latest_checkpoint_result", "pending_training_results", "validated_checkpoint_dir_names"]
)
def test_a_folder_elsewhere_is_refused(tmp_path: Path, field: str, folder: str) -> None:
    result = {"checkpoint_dir_name": folder, "metrics": {}}
    value: Any = {"latest_checkpoint_result": result, "validated_checkpoint_dir_names": [folder]}.get(field, [result])
    store(tmp_path, snapshot(**{field: value}))
    with pytest.raises(DatError, match="which is no folder beside it"):
        check_snapshot(str(tmp_path), "state-1")


def test_a_training_looks_at_it_before_ray_does(tmp_path: Path) -> None:
    from dat_ray.config.cluster import Pool
    from dat_ray.training.train_workers import WorkerGroup, run_workers

    store(tmp_path, json.dumps({"checkpoint_results": [{"checkpoint_dir_name": "../../private"}]}))
    with pytest.raises(DatError, match="private"):
        run_workers(print, {}, WorkerGroup("train", "state-1", str(tmp_path), Pool(), "cluster.trainer", 1, 1))
