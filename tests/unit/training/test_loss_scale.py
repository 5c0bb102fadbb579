"""Float16: gradients that would round to 0 on the way back arrive, and ones that overflow are taken again at a lower scale."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from dat_ray.config.training import LoraConfig, TrainingConfig
from dat_ray.models.adapters import attach_lora
from dat_ray.models.chat import Encoded
from dat_ray.training.batches import HarmfulRow
from dat_ray.training.fine_tuning import TrainingRows
from dat_ray.training.network import Network
from dat_ray.training.step import LOSS_SCALES, FineTuning, UpdateRows, make_trainer
from dat_ray.training.trainer import Diverged, Reduce, WorkerInfo, no_reduce

MakeConfig = Callable[..., TrainingConfig]


def network_in(dtype: torch.dtype) -> Network:
    """The same weights in each dtype, an adapter of float32 off its start."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=61,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.3,
    )
    network = Network(attach_lora(LlamaForCausalLM(config).half().to(dtype), LoraConfig(rank=4, alpha=8), 0))
    generator = torch.Generator().manual_seed(1)
    for parameter in network.trainable().values():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return network


def update(network: Network, rows: UpdateRows, cfg: TrainingConfig, reduce: Reduce = no_reduce) -> tuple[dict, Tensor]:
    """An update's metrics, and the gradient that it was taken with."""
    trainer = make_trainer(network, cfg, 8, worker=WorkerInfo(reduce=reduce))
    metrics = FineTuning(network, cfg, lambda _: rows, unit_norm=1.0).update(trainer, 0)
    return metrics, torch.cat([p.grad.reshape(-1) for p in network.trainable().values() if p.grad is not None])


def weights(make_config: MakeConfig, size: float, **changes: object) -> TrainingConfig:
    """Terms of this size, whose gradients are not clipped."""
    return make_config(
        away_weight=0.5 * size,
        toward_weight=0.5 * size,
        max_grad_norm=1e9,
        harmful_rows=6,
        retain_rows=5,
        attack={"steps": 1},
        **{"retain_weight": 0.5 * size, **changes},
    )


@pytest.mark.parametrize(("size", "scale"), [(1e-5, 2.0**12), (1.0, 2.0**12), (1e4, 2.0**4)])
def test_a_float16_gradient_is_that_of_float32(
    size: float, scale: float, make_config: MakeConfig, harmful_rows: list[HarmfulRow], retain_rows: list[Encoded]
) -> None:
    """Small terms, whose gradients are below float16's smallest number, and large ones, that overflow at the first scale."""
    cfg = weights(make_config, size)
    rows = TrainingRows(harmful_rows, retain_rows).share(cfg, 0, 0, 0, 1)
    plain, expected = update(network_in(torch.float32), rows, cfg)
    metrics, found = update(network_in(torch.float16), rows, cfg)
    assert "loss_scale" not in plain
    assert metrics["loss_scale"] == scale
    assert metrics["loss"] == pytest.approx(plain["loss"], rel=0.02)
    assert (found - expected).norm() < 0.02 * expected.norm()
    assert found.dtype == torch.float32


class Sum:
    """All-reduce of threads: each worker's tensor becomes the sum of all."""

    def __init__(self, world: int) -> None:
        self.barrier, self.given = threading.Barrier(world, timeout=60), [torch.zeros(1)] * world

    def of(self, rank: int) -> Reduce:
        def reduce(tensor: Tensor) -> None:
            self.given[rank] = tensor.clone()
            self.barrier.wait()
            total = torch.stack(self.given).sum(0)
            self.barrier.wait()
            tensor.copy_(total)

        return reduce


def test_workers_agree_on_the_scale_though_one_alone_overflows(
    make_config: MakeConfig, harmful_rows: list[HarmfulRow], retain_rows: list[Encoded]
) -> None:
    cfg = weights(make_config, 1e3, retain_weight=1.0, retain_loss="kl_reverse", retain_normalized=True)
    # The first worker has rows whose gradients overflow at the first scale, the second one's don't.
    shares = [UpdateRows(harmful_rows, [], 6, 11), UpdateRows([], retain_rows[:1], 6, 11)]
    alone_ = [update(network_in(torch.float16), share, cfg)[0]["loss_scale"] for share in shares]
    assert alone_[0] < alone_[1]
    total, results = Sum(2), dict[int, Any]()

    def work(rank: int) -> None:
        results[rank] = update(networks[rank], shares[rank], cfg, total.of(rank))

    networks = [network_in(torch.float16) for _ in shares]
    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results[0][0]["loss_scale"] == results[1][0]["loss_scale"] == alone_[0]
    assert torch.equal(results[0][1], results[1][1])
    one = UpdateRows(harmful_rows, retain_rows[:1], 6, 11)
    _, expected = update(network_in(torch.float32), one, cfg)
    assert (results[0][1] - expected).norm() < 0.05 * expected.norm()


def test_a_gradient_that_overflows_at_every_scale_stops_the_run(
    make_config: MakeConfig, harmful_rows: list[HarmfulRow], retain_rows: list[Encoded]
) -> None:
    cfg = weights(make_config, 1e7)
    network = network_in(torch.float16)
    before = copy.deepcopy({name: p.detach() for name, p in network.trainable().items()})
    with pytest.raises(Diverged, match=r"gradient norm is (nan|inf) at update 0.* from float16 to bfloat16"):
        update(network, TrainingRows(harmful_rows, retain_rows).share(cfg, 0, 0, 0, 1), cfg)
    assert all(torch.equal(before[name], p) for name, p in network.trainable().items())
    assert LOSS_SCALES[-1] == 1.0
