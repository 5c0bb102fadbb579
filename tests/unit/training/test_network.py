"""The two savings of `Network` change nothing: neither the logits nor any gradient."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from transformers import GraniteConfig, GraniteForCausalLM

from dat_ray.config.training import LoraConfig
from dat_ray.errors import DatError
from dat_ray.models.chat import Encoded
from dat_ray.models.loading import attach_lora
from dat_ray.training.batches import HarmfulRow, collate
from dat_ray.training.network import Network

MakeNetwork = Callable[..., Network]


def test_logits_are_those_of_the_whole_model(make_network: MakeNetwork, harmful_rows: list[HarmfulRow]) -> None:
    network = make_network(dtype=torch.float64)
    rows = [row.harmful for row in harmful_rows]
    batch = collate(rows, share_prefix=True)
    assert batch.shared == 4
    found = network.response_logits(batch)
    expected, targets = [], []
    for row in rows:
        low, high = row.response_span
        expected.append(network.model(input_ids=torch.tensor([row.ids])).logits[0, low - 1 : high - 1])
        targets += row.ids[low:high]
    assert torch.allclose(found.logits, torch.cat(expected), atol=1e-12)
    assert found.targets.tolist() == targets
    assert 0 in targets
    assert found.rows.tolist() == [i for i, row in enumerate(rows) for _ in range(*row.response_span)]


def test_the_shared_prefix_gives_the_same_logits_and_gradients(make_network: MakeNetwork, harmful_rows: list[HarmfulRow]) -> None:
    network = make_network(dtype=torch.float64)
    rows = [row.harmful for row in harmful_rows]
    results = []
    for share in (True, False):
        batch = collate(rows, share_prefix=share)
        delta = torch.zeros(*batch.ids.shape, 32, requires_grad=True)
        moved = delta + 0.1 * batch.user[..., None]
        logits = network.response_logits(batch, moved[None]).logits
        network.model.zero_grad(set_to_none=True)
        logits.square().sum().backward()
        assert delta.grad is not None
        grads = [p.grad.clone() for p in network.trainable().values() if p.grad is not None]
        assert len(grads) == len(network.trainable())
        results.append([logits.detach(), delta.grad * batch.user[..., None], *grads])
    for shared, whole in zip(*results, strict=True):
        assert whole.abs().max() > 0
        # The gradient with respect to delta is kept in float32.
        assert torch.allclose(shared, whole, rtol=1e-5, atol=1e-5 * whole.abs().max().item())


def test_the_prefix_runs_once_for_all_rows(make_network: MakeNetwork, harmful_rows: list[HarmfulRow]) -> None:
    network = make_network()
    batch = collate([row.harmful for row in harmful_rows], share_prefix=True)
    tokens: list[int] = []
    network.decoder.layers[0].mlp.register_forward_hook(lambda _m, args, _o: tokens.append(args[0].shape[:2].numel()))
    network.response_logits(batch)
    assert tokens == [4, len(batch.ids) * (batch.ids.shape[1] - 4)]


def test_the_head_sees_response_positions_only(make_network: MakeNetwork, harmful_rows: list[HarmfulRow]) -> None:
    network = make_network()
    batch = collate([row.harmful for row in harmful_rows], share_prefix=True)
    seen: list[int] = []
    network.head.register_forward_hook(lambda _m, args, _o: seen.append(args[0].shape[:-1].numel()))
    network.response_logits(batch)
    assert seen == [int(batch.response.sum())]


def test_a_row_does_not_depend_on_its_padding(make_network: MakeNetwork, encode: Callable[..., Encoded]) -> None:
    network = make_network(dtype=torch.float64)
    short, long = encode([8, 9], [0, 11]), encode(list(range(10, 40)), list(range(20)))
    alone = network.response_logits(collate([short], share_prefix=True)).logits
    together = network.response_logits(collate([short, long], share_prefix=True))
    assert torch.allclose(alone, together.logits[together.rows == 0], atol=1e-12)


def test_a_model_that_scales_its_logits_is_refused() -> None:
    config = GraniteConfig(
        vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, logits_scaling=8.0
    )
    model = attach_lora(GraniteForCausalLM(config), LoraConfig(rank=2), 0)
    with pytest.raises(DatError, match="GraniteForCausalLM changes its logits"):
        Network(model)
