"""`metrics.jsonl` and TensorBoard, replays included."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dat_ray.training.update_metrics import METRICS, TENSORBOARD, MetricsLog, read_metrics, scalars


def metrics(update: int, loss: float) -> dict[str, Any]:
    return {"update": update, "loss": loss, "attack_ce": [3.0, 2.0], "attack_norm": [0.5], "seconds_by_part": {}}


def test_a_replayed_update_replaces_its_line(tmp_path: Path) -> None:
    log = MetricsLog(str(tmp_path))
    log.start(0)
    for update in range(4):
        log.append(metrics(update, 1.0))
    log.close()
    again = MetricsLog(str(tmp_path))
    again.start(2)
    again.append(metrics(2, 5.0))
    again.close()
    assert [(row["update"], row["loss"]) for row in read_metrics(str(tmp_path))] == [(0, 1.0), (1, 1.0), (2, 5.0)]
    assert all(json.loads(line) for line in (tmp_path / METRICS).read_text().splitlines())


def test_an_update_is_logged_once(tmp_path: Path) -> None:
    log = MetricsLog(str(tmp_path))
    log.start(0)
    log.append(metrics(0, 1.0))
    with pytest.raises(AssertionError, match="in order"):
        log.append(metrics(0, 1.0))


def test_no_log_yet(tmp_path: Path) -> None:
    assert read_metrics(str(tmp_path / "absent")) == []


def test_scalars_for_tensorboard() -> None:
    assert scalars(metrics(7, 1.5)) == {
        "training/loss": 1.5,
        "attack/harmful_ce_before": 3.0,
        "attack/harmful_ce_after": 2.0,
        "attack/relative_norm": 0.5,
    }
    assert "attack/relative_norm" not in scalars({**metrics(7, 1.5), "attack_norm": []})


def test_tensorboard_holds_every_update(tmp_path: Path) -> None:
    log = MetricsLog(str(tmp_path), tensorboard=True)
    log.start(0)
    log.append(metrics(0, 1.25))
    log.close()
    (events,) = (tmp_path / TENSORBOARD).iterdir()
    assert b"training/loss" in events.read_bytes()
