"""Each recipe's objective, for a few updates on a tiny model: the response becomes unlikely, the refusal likely."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from dat_ray.config.loading import load_recipe
from dat_ray.config.training import TrainingConfig
from dat_ray.models.chat import Encoded
from dat_ray.training.batches import HarmfulRow
from dat_ray.training.checkpoint import FolderCheckpoints, RunFingerprint
from dat_ray.training.fine_tuning import TrainingRows, fine_tune
from dat_ray.training.network import Network
from dat_ray.training.trainer import TrainingFiles
from dat_ray.training.update_metrics import MetricsLog, read_metrics

RECIPES = (
    "dat-llama3-8b",
    "diffusion-only-llama3-8b",
    "cat-original-llama3-8b",
    "capo-llama3-8b",
    "mixat-llama3-8b",
    "lat-llama3-8b",
)
# What a model of 32 dimensions needs instead of a model of billions; all else is the recipe's.
SMALL = {"learning_rate": 0.02, "updates": 10, "harmful_rows": 6, "warmup": 0.0, "dtype": "float32", "micro_rows": None}


def small(name: str) -> TrainingConfig:
    cfg = load_recipe(name).training
    steps = min(cfg.attack.steps, 3)
    attack = cfg.attack.model_copy(update={"steps": steps, "step_size": 0.02 if cfg.attack.step_rule == "adam" else 0.05})
    if len(cfg.attack.layers) > 1:
        attack = attack.model_copy(update={"layers": ("embedding", 0, 1)})
    if cfg.attack.unit == "absolute":
        attack = attack.model_copy(update={"step_size": 0.02, "radius": 0.5, "radius_unit": None})
    retain = 5 if cfg.retain_rows else 0
    return cfg.model_copy(
        update={**SMALL, "retain_rows": retain, "steps_per_attack": min(cfg.steps_per_attack, 2), "attack": attack}
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_has_its_effect(
    name: str,
    make_network: Callable[..., Network],
    harmful_rows: list[HarmfulRow],
    retain_rows: list[Encoded],
    tmp_path: Path,
) -> None:
    cfg = small(name)
    rewrites = harmful_rows[3:] * 2 if name.startswith("mixat") else ()
    rows = TrainingRows(harmful_rows, retain_rows if cfg.retain_rows else [], rewrites)
    log = MetricsLog(str(tmp_path))
    files = TrainingFiles(RunFingerprint("0"), FolderCheckpoints(tmp_path / "checkpoints"), log)
    fine_tune(make_network(adapted=False), rows, cfg, 0, files)
    log.close()
    curve = read_metrics(str(tmp_path))
    first, last = curve[0], curve[-1]
    assert len(curve) == 10
    assert last["away"] < first["away"] - 0.5, "log p of the harmful response, under attack"
    assert last["toward"] < first["toward"] - 0.5, "cross-entropy of the refusal, under attack"
    if cfg.attack.steps and cfg.attack.objective == "harmful_ce":
        assert all(row["attack_ce"][-1] <= row["attack_ce"][0] + 1e-3 for row in curve), "the attack helps the response"
    retain = next(key for key in last if key.startswith("retain"))
    if retain != "retain_ce" and cfg.retain_rows:
        # Random weights: the same updates without a retain term end far above.
        assert 0 < last[retain] < 1.5
    if retain == "retain_ce" and cfg.retain_rows:
        assert last[retain] < first[retain] + 0.5
