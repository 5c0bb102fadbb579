"""The loss of a global batch does not depend on how many processes share it: 1, 2 and 4, over gloo."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from dat_ray.config.training import TrainingConfig
from dat_ray.models.chat import Encoded
from dat_ray.training.batches import HarmfulRow
from dat_ray.training.fine_tuning import TrainingRows
from dat_ray.training.network import Network
from dat_ray.training.sharding import shard_frozen_weights
from dat_ray.training.step import FineTuning, make_trainer
from dat_ray.training.trainer import WorkerInfo

KEYS = ("away", "toward", "retain_reverse_kl", "loss", "attack_ce", "attack_norm", "gradient_norm")


def bytes_held(network: Network) -> int:
    """Bytes of the parameters that this worker holds, shares counted as what they are."""
    total = 0
    for parameter in network.model.parameters():
        local = getattr(parameter, "to_local", None)
        tensor = parameter if local is None else local()
        total += tensor.numel() * tensor.element_size()
    return total


def worker(rank: int, world: int, folder: Path, network: Network, rows: TrainingRows, cfg: TrainingConfig) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store-{world}", rank=rank, world_size=world)
    if cfg.shard_weights:
        whole = bytes_held(network)
        shard_frozen_weights(network, torch.device("cpu"), world)
        (folder / f"bytes-{rank}.json").write_text(json.dumps([whole, bytes_held(network)]))
    trainer, log = make_trainer(network, cfg, 8, worker=WorkerInfo(rank, world, dist.all_reduce)), []
    objective = FineTuning(network, cfg, lambda update: rows.share(cfg, 0, update, rank, world))
    for update in range(3):
        metrics = objective.update(trainer, update)
        log.append({key: value for key, value in metrics.items() if key not in ("seconds", "seconds_by_part", "cost")})
    (folder / f"log-{world}-{rank}.json").write_text(json.dumps(log))
    dist.destroy_process_group()


def run_processes(world: int, *arguments: Any) -> None:
    # Forked, the processes share the imports: spawned ones would take a minute on two cores to begin.
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=worker, args=(rank, world, *arguments)) for rank in range(world)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=300)
        assert process.exitcode == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"away": "ipo", "retain_loss": "kl_reverse", "retain_normalized": True, "micro_rows": 1},
        {
            "attack": {"steps": 2, "unit": "absolute", "layers": ("embedding", 1), "objective": "joint"},
            "activation_checkpointing": True,
        },
    ],
    ids=["dat", "ipo", "layers"],
)
def test_split_weights_give_the_losses_of_whole_ones(
    changes: dict[str, Any],
    make_network: Callable[..., Network],
    make_config: Callable[..., TrainingConfig],
    harmful_rows: list[HarmfulRow],
    retain_rows: list[Encoded],
    tmp_path: Path,
) -> None:
    rows, logs = TrainingRows(harmful_rows, retain_rows), []
    for split in (False, True):
        cfg = make_config(harmful_rows=4, retain_rows=4, shard_weights=split, **changes)
        network = make_network(dtype=torch.float64, checkpointing=cfg.activation_checkpointing)
        folder = tmp_path / str(split)
        folder.mkdir()
        run_processes(2, folder, network, rows, cfg)
        found = [json.loads((folder / f"log-2-{rank}.json").read_text()) for rank in range(2)]
        assert found[0] == found[1]
        logs.append(found[0])
    retain = next(key for key in logs[0][0] if key.startswith("retain"))
    assert logs[0][0][retain] != logs[0][2][retain], "the updates move the model"
    for whole, shared in zip(*logs, strict=True):
        for key, value in whole.items():
            # Perturbations are float32: what differs in the 16th digit before them does in the 8th after.
            assert shared[key] == pytest.approx(value, rel=1e-5, abs=1e-6), key
    before, held = json.loads((tmp_path / "True" / "bytes-0.json").read_text())
    adapter = sum(p.numel() * p.element_size() for p in network.trainable().values())
    layers = sum(
        p.numel() * p.element_size() for layer in network.decoder.layers for p in layer.parameters() if not p.requires_grad
    )
    assert held == before - layers // 2, "half of the layers' frozen weights"
    assert 0 < adapter < held


@pytest.mark.slow
def test_one_two_and_four_processes_have_the_same_losses(
    make_network: Callable[..., Network],
    make_config: Callable[..., TrainingConfig],
    harmful_rows: list[HarmfulRow],
    retain_rows: list[Encoded],
    tmp_path: Path,
) -> None:
    # A retain term that is divided by its own value takes the value of the whole update, not of a worker's rows.
    cfg = make_config(harmful_rows=5, retain_rows=4, micro_rows=1, retain_loss="kl_reverse", retain_normalized=True)
    network, rows = make_network(dtype=torch.float64), TrainingRows(harmful_rows, retain_rows)
    logs = {}
    for world in (1, 2, 4):
        run_processes(world, tmp_path, network, rows, cfg)
        found = [json.loads((tmp_path / f"log-{world}-{rank}.json").read_text()) for rank in range(world)]
        assert all(one == found[0] for one in found), "every worker reports the update's numbers"
        logs[world] = found[0]
    assert logs[1][0]["loss"] != pytest.approx(logs[1][2]["loss"], abs=1e-3), "the updates move the loss"
    for world in (2, 4):
        for one, other in zip(logs[1], logs[world], strict=True):
            for key in KEYS:
                # Perturbations are float32, and padding to other batch mates changes their last bits.
                assert other[key] == pytest.approx(one[key], rel=1e-4, abs=1e-5), (world, key)
