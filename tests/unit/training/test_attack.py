"""The attack's arithmetic on functions with known gradients, and its effect on a tiny model."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GraniteConfig,
    LlamaConfig,
    PreTrainedConfig,
)

from dat_ray.config.training import AttackConfig, TrainingConfig
from dat_ray.training.attack import Direction, attack, mean_embedding_norm, project
from dat_ray.training.attacked import attack_embeddings
from dat_ray.training.batches import HarmfulRow, collate
from dat_ray.training.network import Network
from dat_ray.training.terms import find_perturbation

# (1, 2, 2): the gradient of the linear objective below; position 0 has norm 5.
SLOPE = torch.tensor([[[3.0, -4.0], [0.0, 2.0]]])
EVERYWHERE = torch.ones(1, 2, dtype=torch.bool)


def linear(delta: Tensor) -> tuple[Tensor, Tensor]:
    value = (delta * SLOPE).sum(dim=(1, 2))
    return value, value


def bowl(delta: Tensor) -> tuple[Tensor, Tensor]:
    value = ((delta - 1.0) ** 2).sum(dim=(-2, -1)).reshape(-1, delta.shape[-3]).sum(dim=0)
    return value, value


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        # Adam's first step is the sign, but for its epsilon.
        ("adam", [[[-0.1, 0.1], [0.0, -0.1]]]),
        ("sign", [[[-0.1, 0.1], [0.0, -0.1]]]),
        ("l2_normalized", [[[-0.06, 0.08], [0.0, -0.1]]]),
        ("raw", [[[-0.3, 0.4], [0.0, -0.2]]]),
    ],
)
def test_one_step_of_each_rule(rule: str, expected: list) -> None:
    cfg = AttackConfig(steps=1, step_size=0.1, step_rule=rule, unit="absolute")
    found = attack(linear, EVERYWHERE, 2, cfg, unit_norm=7.0).delta
    assert torch.allclose(found, torch.tensor(expected), atol=1e-7)


def test_relative_sizes_are_multiples_of_the_embedding_norm() -> None:
    absolute = AttackConfig(steps=3, step_size=0.7, radius=1.4, unit="absolute")
    relative = AttackConfig(steps=3, step_size=0.1, radius=0.2, unit="relative")
    first = attack(linear, EVERYWHERE, 2, absolute, unit_norm=7.0)
    second = attack(linear, EVERYWHERE, 2, relative, unit_norm=7.0)
    assert torch.allclose(first.delta, second.delta, atol=1e-6)
    # Three steps of 0.1 in one direction, stopped by the radius at 0.2.
    assert second.relative_norm == pytest.approx([0.1, 0.2, 0.2], abs=1e-6)


def test_a_radius_may_have_a_unit_of_its_own() -> None:
    # CAT's public code: steps in absolute units, a radius in units of the mean embedding norm.
    cfg = AttackConfig(steps=9, step_size=0.5, step_rule="l2_normalized", unit="absolute", radius=0.2, radius_unit="relative")
    found = attack(linear, EVERYWHERE, 2, cfg, unit_norm=7.0)
    assert found.relative_norm == pytest.approx([0.5 / 7, 1.0 / 7, *[0.2] * 7], abs=1e-6)


def test_every_iterate_is_logged_and_the_last_is_returned() -> None:
    cfg = AttackConfig(steps=4, step_size=0.1, step_rule="raw", unit="absolute")
    found = attack(bowl, EVERYWHERE, 2, cfg, unit_norm=1.0)
    # d <- d + 0.2 (1 - d) from 0: 1 - 0.8^k after k steps; the objective is 4 coordinates of 0.8^(2k).
    assert torch.allclose(found.delta, torch.full((1, 2, 2), 1 - 0.8**4), atol=1e-6)
    assert found.harmful_ce == pytest.approx([4 * 0.8 ** (2 * k) for k in range(4)], rel=1e-5)


def test_projection_is_for_each_position() -> None:
    delta = torch.tensor([[[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]]])
    assert torch.allclose(project(delta, 1.0), torch.tensor([[[0.6, 0.8], [0.3, 0.4], [0.0, 0.0]]]))
    assert torch.equal(project(delta, None), delta)
    assert torch.equal(project(delta, 0.0), torch.zeros_like(delta))


def test_a_zero_gradient_gives_a_zero_step() -> None:
    for rule in ("sign", "l2_normalized", "raw", "adam"):
        assert torch.equal(Direction(rule)(torch.zeros(1, 1, 3)), torch.zeros(1, 1, 3))


def test_adam_takes_the_steps_of_torchs_adam() -> None:
    cfg = AttackConfig(steps=5, step_size=0.3, step_rule="adam", unit="absolute")
    found = attack(bowl, EVERYWHERE, 2, cfg, unit_norm=1.0).delta
    literal = torch.nn.Parameter(torch.zeros(1, 2, 2))
    optimizer = torch.optim.Adam([literal], lr=0.3)
    for _ in range(5):
        optimizer.zero_grad()
        bowl(literal)[0].sum().backward()
        optimizer.step()
    assert torch.allclose(found, literal.detach(), atol=1e-6)
    assert not torch.allclose(found, torch.full((1, 2, 2), 1.5), atol=1e-3), "five signs would be 1.5"


def test_the_best_iterate_is_each_rows_own() -> None:
    # Steps of 0.9 towards 1 and 2.4: iterates 0.9, 1.8, 0.9, 1.8 and 0.9, 1.8, 2.7, 1.8.
    goals = torch.tensor([1.0, 2.4])

    def objective(delta: Tensor) -> tuple[Tensor, Tensor]:
        value = (delta[..., 0, 0] - goals).square()
        return value, value

    cfg = AttackConfig(steps=4, step_size=0.9, step_rule="sign", unit="absolute")
    where = torch.ones(2, 1, dtype=torch.bool)
    last = attack(objective, where, 1, cfg, unit_norm=1.0).delta
    best = attack(objective, where, 1, cfg.model_copy(update={"iterate": "best"}), unit_norm=1.0).delta
    assert last.flatten().tolist() == pytest.approx([1.8, 1.8], abs=1e-6)
    assert best.flatten().tolist() == pytest.approx([0.9, 2.7], abs=1e-6)
    # The last iterate may be the best: it is asked too.
    three = cfg.model_copy(update={"steps": 3, "iterate": "best"})
    assert attack(objective, where, 1, three, unit_norm=1.0).delta.flatten().tolist() == pytest.approx([0.9, 2.7], abs=1e-6)


def test_mean_embedding_norm() -> None:
    weights = torch.tensor([[3.0, 4.0], [0.0, 1.0]])
    assert mean_embedding_norm(torch.nn.Embedding.from_pretrained(weights)) == pytest.approx(3.0)
    # 5,000 tokens are measured in two parts of unequal size.
    many = torch.tensor([[float(i), 0.0] for i in range(5000)])
    assert mean_embedding_norm(torch.nn.Embedding.from_pretrained(many)) == pytest.approx(2499.5)


SCALED: dict[str, tuple[Callable[..., PreTrainedConfig], dict[str, Any], float]] = {
    "llama": (LlamaConfig, {}, 1.0),
    "gemma": (GemmaConfig, {"head_dim": 8}, 4.0),
    "gemma-2": (Gemma2Config, {"head_dim": 8, "final_logit_softcapping": None, "attn_logit_softcapping": None}, 4.0),
    "gemma-3": (Gemma3TextConfig, {"head_dim": 8}, 4.0),
    "granite": (GraniteConfig, {"embedding_multiplier": 12.0, "logits_scaling": 1.0}, 1.0),
}


def scaled_network(family: str) -> Network:
    """One layer of width 16, in front of which Gemma multiplies by 4, and Granite the sum with a perturbation by 12."""
    kind, fields, _ = SCALED[family]
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = kind(vocab_size=61, num_key_value_heads=2, pad_token_id=0, **shape, **fields)
    return Network(AutoModelForCausalLM.from_config(config).eval().requires_grad_(False))


@pytest.mark.parametrize("family", SCALED)
def test_a_relative_step_is_relative_to_what_the_first_layer_reads(
    family: str, make_config: Callable[..., TrainingConfig], harmful_rows: list[HarmfulRow]
) -> None:
    network = scaled_network(family)
    seen: list[Tensor] = []
    network.decoder.layers[0].register_forward_pre_hook(
        lambda _m, args, kwargs: seen.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
    )
    network.decoder(input_ids=torch.arange(61)[None])
    unit = seen[-1][0].norm(dim=-1).mean().item()
    assert mean_embedding_norm(network.embedding) == pytest.approx(
        SCALED[family][2] * network.embedding.weight.norm(dim=1).mean().item(), rel=1e-6
    )
    delta = perturb(network, harmful_rows, make_config(), steps=1, step_size=0.5)
    batch = collate([row.harmful for row in harmful_rows], share_prefix=False)
    for one in (torch.zeros_like(delta), delta):
        network.response_logits(batch, one)
    lengths = (seen[-1] - seen[-2]).norm(dim=-1)
    assert lengths[batch.user].tolist() == pytest.approx([0.5 * unit] * int(batch.user.sum()), rel=1e-4)
    assert lengths[~batch.user].abs().max() < 1e-6


def test_the_evaluations_attack_has_the_same_unit(harmful_rows: list[HarmfulRow]) -> None:
    network, row = scaled_network("gemma-3"), harmful_rows[0].harmful
    config = AttackConfig(steps=1, step_size=0.5, positions="user")
    embeddings, _ = attack_embeddings(network, row, config)
    low, high = row.user_span
    plain = 4.0 * network.embedding.weight[row.ids[low:high]]
    unit = 4.0 * network.embedding.weight.norm(dim=1).mean().item()
    assert (embeddings[0, low:high] - plain).norm(dim=-1).tolist() == pytest.approx([0.5 * unit] * (high - low), rel=1e-4)


@pytest.mark.parametrize("units", [{"unit": "relative"}, {"unit": "absolute", "radius": 1.0, "radius_unit": "relative"}])
def test_the_embedding_norm_is_no_unit_of_a_decoder_layer(units: dict) -> None:
    with pytest.raises(ValidationError, match=r"set unit .and radius_unit. to absolute"):
        AttackConfig.model_validate({"layers": ["embedding", 3], **units})


def perturb(network: Network, rows: list[HarmfulRow], cfg: TrainingConfig, **changes: object) -> Tensor:
    attacked = cfg.model_copy(update={"attack": cfg.attack.model_copy(update=changes)})
    return find_perturbation(network, rows, attacked, mean_embedding_norm(network.embedding)).delta


@pytest.mark.parametrize("layers", [("embedding",), ("embedding", 0)], ids=["embeddings", "layers"])
@pytest.mark.parametrize("positions", ["user", "prompt"])
@pytest.mark.parametrize("rule", ["sign", "l2_normalized", "raw", "adam"])
def test_the_ball_holds_on_each_prompt_token_and_nothing_else_moves(
    layers: tuple,
    positions: str,
    rule: str,
    make_network: Callable[..., Network],
    make_config: Callable[..., TrainingConfig],
    harmful_rows: list[HarmfulRow],
) -> None:
    network, cfg = make_network(), make_config()
    radius = 0.25
    unit = mean_embedding_norm(network.embedding)
    changes = {"positions": positions, "step_rule": rule, "radius": radius, "steps": 4, "step_size": 0.2}
    deltas = perturb(network, harmful_rows, cfg, layers=layers, **changes)
    batch = collate([row.harmful for row in harmful_rows], share_prefix=False)
    where = batch.user if positions == "user" else batch.prompt
    assert len(deltas) == len(layers)
    for delta in deltas:
        norms = delta.norm(dim=-1)
        assert (norms[where] <= radius * unit * (1 + 1e-5)).all()
        assert (norms[where] > 0).any()
        assert (norms[~where] == 0).all()
        assert (norms[batch.response | ~batch.valid] == 0).all()


def test_the_harmful_response_becomes_likelier_with_every_step(
    make_network: Callable[..., Network], make_config: Callable[..., TrainingConfig], harmful_rows: list[HarmfulRow]
) -> None:
    network = make_network()
    cfg = make_config(attack={"steps": 6, "step_size": 0.02})
    seen = find_perturbation(network, harmful_rows, cfg, mean_embedding_norm(network.embedding)).harmful_ce
    assert len(seen) == 6
    assert all(after < before for before, after in itertools.pairwise(seen))


@pytest.mark.parametrize("training", [True, False])
def test_the_attack_leaves_the_model_as_it_was(
    training: bool,
    make_network: Callable[..., Network],
    make_config: Callable[..., TrainingConfig],
    harmful_rows: list[HarmfulRow],
) -> None:
    network = make_network(dropout=0.5)
    network.model.train(training)
    before = {name: p.detach().clone() for name, p in network.model.named_parameters()}
    trainable = set(network.trainable())
    first = perturb(network, harmful_rows, make_config())
    assert torch.equal(first, perturb(network, harmful_rows, make_config())), "dropout acted during the attack"
    assert network.model.training is training
    assert set(network.trainable()) == trainable
    assert trainable
    for name, parameter in network.model.named_parameters():
        assert parameter.grad is None, name
        assert torch.equal(parameter, before[name])


@pytest.mark.parametrize("rule", ["l2_normalized", "raw"])
def test_a_row_is_attacked_as_if_it_were_alone(
    rule: str,
    make_network: Callable[..., Network],
    make_config: Callable[..., TrainingConfig],
    harmful_rows: list[HarmfulRow],
) -> None:
    network, cfg = make_network(dtype=torch.float64), make_config()
    together = perturb(network, harmful_rows, cfg, step_rule=rule)
    for index, row in enumerate(harmful_rows):
        alone = perturb(network, [row], cfg, step_rule=rule)[0, 0]
        assert torch.allclose(together[0, index, : len(alone)], alone, atol=1e-5)
        assert alone.norm() > 0.1
