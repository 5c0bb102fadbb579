"""The loss of a global batch does not depend on how many processes share it: 1, 2 and 4, over gloo."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from dat_ray.config.training import TrainingConfig
from dat_ray.models.chat import Encoded
from dat_ray.training.attack import mean_embedding_norm
from dat_ray.training.batches import HarmfulRow
from dat_ray.training.loop import TrainingRows
from dat_ray.training.network import Network
from dat_ray.training.step import make_optimizer, take_update

KEYS = ("away", "toward", "retain_reverse_kl", "loss", "attack_ce", "attack_norm", "gradient_norm")


def worker(rank: int, world: int, folder: Path, network: Network, rows: TrainingRows, cfg: TrainingConfig) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store-{world}", rank=rank, world_size=world)
    unit, optimizer, log = mean_embedding_norm(network.embedding.weight), make_optimizer(network, cfg), []
    for update in range(3):
        share = rows.share(cfg, 0, update, rank, world)
        metrics = take_update(
            network, optimizer, share, cfg, update=update, updates=8, unit_norm=unit, seed=0, rank=rank, reduce=dist.all_reduce
        )
        log.append({key: metrics[key] for key in KEYS})
    (folder / f"log-{world}-{rank}.json").write_text(json.dumps(log))
    dist.destroy_process_group()


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
    # Forked, the processes share the imports: spawned ones would take a minute on two cores to begin.
    context = multiprocessing.get_context("fork")
    logs = {}
    for world in (1, 2, 4):
        processes = [context.Process(target=worker, args=(rank, world, tmp_path, network, rows, cfg)) for rank in range(world)]
        for process in processes:
            process.start()
        for process in processes:
            process.join(timeout=300)
            assert process.exitcode == 0
        found = [json.loads((tmp_path / f"log-{world}-{rank}.json").read_text()) for rank in range(world)]
        assert all(one == found[0] for one in found), "every worker reports the update's numbers"
        logs[world] = found[0]
    assert logs[1][0]["loss"] != pytest.approx(logs[1][2]["loss"], abs=1e-3), "the updates move the loss"
    for world in (2, 4):
        for one, other in zip(logs[1], logs[world], strict=True):
            for key in KEYS:
                # Perturbations are float32, and padding to other batch mates changes their last bits.
                assert other[key] == pytest.approx(one[key], rel=1e-4, abs=1e-5), (world, key)
