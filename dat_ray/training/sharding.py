"""Frozen weights split over the workers with FSDP2: each holds its share and gathers one decoder layer at a time.

Only what no update changes is split. The adapter stays whole on every worker, so that its gradients, its optimizer, the
checkpoints and the mathematics of an update are those of unsplit training. Embeddings, head and the final norm stay whole
too: they are read outside the decoder's own forward pass.
"""

from __future__ import annotations

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from dat_ray.training.network import Network


def shard_frozen_weights(network: Network, device: torch.device, world: int) -> None:
    """Splits the decoder layers' frozen weights over the workers of the process group, in place.

    From then on the workers run in step: each must make the same calls of the network in the same order.

    Args:
        network: on the CPU, or already on `device`; split layer by layer, so that the device never holds the whole.
        device: where this worker's part goes, and the rest of the model after it.
        world: workers.
    """
    mesh = init_device_mesh(device.type, (world,))
    trainable = set(network.trainable().values())
    for layer in network.layers:
        fully_shard(layer, mesh=mesh, reshard_after_forward=True, ignored_params=trainable & set(layer.parameters()))
    # The root owns no weights; it only lets the layers fetch ahead of one another.
    rest = {parameter for parameter in network.decoder.parameters() if not hasattr(parameter, "full_tensor")}
    fully_shard(network.decoder, mesh=mesh, ignored_params=rest)
    network.model.to(device)
    network.split_over_workers = True
