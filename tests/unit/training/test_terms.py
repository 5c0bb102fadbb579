"""The terms of an update, in every published composition, against a literal form that shares no code with them."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from dat_ray.config.training import TrainingConfig
from dat_ray.models.chat import Encoded
from dat_ray.training.attack import mean_embedding_norm
from dat_ray.training.batches import HarmfulRow
from dat_ray.training.fine_tuning import TrainingRows
from dat_ray.training.network import Network
from dat_ray.training.objectives import token_logprobs
from dat_ray.training.step import FineTuning, accumulate, make_trainer, perturb
from dat_ray.training.terms import find_perturbation, pair_batch, retain_losses
from dat_ray.training.trainer import no_reduce
from tests.unit.training.literal_update import (
    literal_attack_objective,
    literal_harmful,
    literal_retain,
    log_softmax_of_span,
)
from tests.unit.training.updates import flat_gradient, run, whole

MakeNetwork = Callable[..., Network]
MakeConfig = Callable[..., TrainingConfig]

# The published objectives, with cutoffs that some rows of the tests pass and others don't.
OBJECTIVES: dict[str, dict[str, Any]] = {
    "dat": {},
    "diffusion-only": {"attack": {"steps": 0}},
    "cat": {
        "away_cutoff": -3.5,
        "toward_cutoff": 3.5,
        "cutoff_form": "soft",
        "retain_loss": "ce",
        "attack": {"steps": 2, "step_size": 0.02, "step_rule": "sign", "positions": "prompt", "radius": 0.3},
    },
    "cat-unlikelihood": {"away": "unlikelihood", "away_cutoff": -4.0, "toward_cutoff": 3.5},
    "capo": {
        "away": "ipo",
        "away_weight": 1.0,
        "away_cutoff": -4.0,
        "toward_cutoff": 2.0,
        "attack": {"steps": 2, "step_size": 0.02, "step_rule": "sign", "positions": "prompt"},
    },
    "lat": {
        "away": "unlikelihood",
        "away_cutoff": -5.0,
        "retain_loss": "kl_reverse",
        "retain_normalized": True,
        "attack": {
            "steps": 2,
            "step_size": 0.05,
            "step_rule": "adam",
            "unit": "absolute",
            "radius": 0.3,
            "positions": "sequence",
            "layers": ["embedding", 0, 1],
            "objective": "joint",
        },
    },
    "clipped": {"loss_clip": 0.5, "attack": {"steps": 2, "step_size": 0.1, "iterate": "best", "objective": "joint"}},
}


def add(others: float, tensor: Tensor) -> None:
    """A reduction in which the other workers have this sum."""
    tensor.add_(others)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_loss_and_gradient_are_those_of_the_literal_form(
    name: str, make_network: MakeNetwork, make_config: MakeConfig, harmful_rows: list[HarmfulRow], retain_rows: list[Encoded]
) -> None:
    network, cfg = make_network(dtype=torch.float64), make_config(**OBJECTIVES[name])
    loss, gradient = run(network, whole(harmful_rows, retain_rows), cfg)

    found = find_perturbation(network, harmful_rows, cfg, mean_embedding_norm(network.embedding)).delta
    harmful = [literal_harmful(network.model, row, found[:, i].double(), cfg) for i, row in enumerate(harmful_rows)]
    expected = torch.stack(harmful).mean() + cfg.retain_weight * literal_retain(network.model, retain_rows, cfg)
    network.model.zero_grad(set_to_none=True)
    expected.backward()
    assert loss == pytest.approx(expected.item(), abs=1e-6)
    assert torch.allclose(gradient, flat_gradient(network), atol=1e-6)
    assert gradient.norm() > 0.05


@pytest.mark.parametrize(
    ("joint", "away", "layers"),
    [(False, "neg_ce", ["embedding"]), (True, "neg_ce", ["embedding"]), (True, "unlikelihood", ["embedding", 0])],
)
def test_a_step_of_the_attack_is_down_the_gradient_of_its_objective(
    joint: bool,
    away: str,
    layers: list,
    make_network: MakeNetwork,
    make_config: MakeConfig,
    harmful_rows: list[HarmfulRow],
) -> None:
    network = make_network(dtype=torch.float64)
    attack = {"steps": 1, "step_size": 0.5, "step_rule": "raw", "unit": "absolute", "positions": "prompt", "layers": layers}
    cfg = make_config(
        away=away, away_weight=0.3, toward_weight=0.7, attack={**attack, "objective": "joint" if joint else "harmful_ce"}
    )
    found = find_perturbation(network, harmful_rows, cfg, 1.0).delta
    for i, row in enumerate(harmful_rows):
        prompt = row.harmful.response_span[0]
        zero = torch.zeros(len(layers), prompt, 32, dtype=torch.float64, requires_grad=True)
        (gradient,) = torch.autograd.grad(literal_attack_objective(network.model, row, zero, cfg), zero)
        assert torch.allclose(found[:, i, :prompt].double(), -0.5 * gradient, atol=1e-6)
        assert gradient.norm() > 1e-3


def test_the_joint_attack_makes_the_refusal_unlikely_too(
    make_network: MakeNetwork, make_config: MakeConfig, harmful_rows: list[HarmfulRow]
) -> None:
    network = make_network()
    attack = {"steps": 6, "step_size": 0.1}
    unit = mean_embedding_norm(network.embedding)
    refusals = {}
    for objective in ("harmful_ce", "joint"):
        cfg = make_config(attack={**attack, "objective": objective}, retain_weight=0.0)
        rows = whole(harmful_rows, [])
        sums, _ = accumulate(network, rows, perturb(network, rows, cfg, unit), cfg, no_reduce)
        refusals[objective] = sums[1].item()
    assert refusals["joint"] > refusals["harmful_ce"] + 0.2


@pytest.mark.parametrize("name", OBJECTIVES)
def test_gradient_accumulation_is_one_big_batch(
    name: str, make_network: MakeNetwork, make_config: MakeConfig, harmful_rows: list[HarmfulRow], retain_rows: list[Encoded]
) -> None:
    network, rows = make_network(dtype=torch.float64), whole(harmful_rows, retain_rows)
    loss, gradient = run(network, rows, make_config(**OBJECTIVES[name]))
    for size in (1, 4):
        cfg = make_config(**OBJECTIVES[name], micro_rows=size)
        seen: list[int] = []
        handle = network.decoder.layers[0].mlp.register_forward_hook(lambda _m, args, _o, seen=seen: seen.append(len(args[0])))
        part_loss, part = run(network, rows, cfg)
        handle.remove()
        assert max(seen) == 2 * size, "both responses of a micro batch, and no more"
        assert part_loss == pytest.approx(loss, abs=1e-5)
        # Perturbations are float32: a row's padding changes their last bits, and a sign step in Adam can follow them.
        assert torch.allclose(part, gradient, atol=1e-4)


def moved(network: Network, scale: float) -> Network:
    """The network with its adapter `scale` away from its start, at which it is the base model."""
    generator = torch.Generator().manual_seed(8)
    for name, parameter in network.trainable().items():
        if ".lora_B." in name:
            parameter.data += scale * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return network


@pytest.mark.parametrize("scale", [1e-1, 1e-4, 1e-6, 0.0])
def test_a_normalized_retain_term_is_torchs_element_mean_over_itself(
    scale: float, make_network: MakeNetwork, make_config: MakeConfig, retain_rows: list[Encoded]
) -> None:
    """Against torch's own KL loss, whose default is the mean over elements, at every distance from the base model."""
    network, rows = moved(make_network(adapted=False, dtype=torch.float64), scale), whole([], retain_rows)
    cfg = make_config(retain_weight=0.3, retain_normalized=True, retain_loss="kl_reverse")
    value, gradient = run(network, rows, cfg)
    new = torch.cat([log_softmax_of_span(network.model, row, None) for row in retain_rows])
    with torch.no_grad(), network.model.disable_adapter():
        old = torch.cat([log_softmax_of_span(network.model, row, None) for row in retain_rows])
    kl = torch.nn.KLDivLoss(reduction="sum", log_target=True)(old, new) / old.numel()
    network.model.zero_grad(set_to_none=True)
    (0.3 * kl / (kl.detach() + 1e-8)).backward()
    assert value == pytest.approx(0.3 * kl.item() / (kl.item() + 1e-8), abs=1e-9)
    expected = flat_gradient(network)
    assert (gradient - expected).norm() <= 1e-5 * expected.norm() + 1e-8
    assert (value < 1e-3) == (scale <= 1e-6), "far below the guard the term fades, far above it is its weight"


@pytest.mark.parametrize("world", [1, 3])
def test_near_the_base_model_the_harmful_terms_keep_their_share(
    world: int, make_network: MakeNetwork, make_config: MakeConfig, harmful_rows: list[HarmfulRow], retain_rows: list[Encoded]
) -> None:
    """However many workers: the guard is on the update's term, of which a worker sees a part, or nothing."""
    network = moved(make_network(adapted=False, dtype=torch.float64), 2e-8)
    data = TrainingRows(harmful_rows, retain_rows[:2])
    cfg = make_config(**OBJECTIVES["lat"], retain_weight=0.1, harmful_rows=6, retain_rows=2)
    without = cfg.model_copy(update={"retain_weight": 0.0})
    kls, gradients, harmful = [], [], []
    for rank in range(world):
        rows = data.share(cfg, 0, 0, rank, world)
        network.model.zero_grad(set_to_none=True)
        accumulate(network, rows, perturb(network, rows, cfg, 1.0), without, no_reduce)
        harmful.append(flat_gradient(network))
        kls.append(retain_losses(network, rows.retain, cfg, 1)[1].sum().item() if rows.retain else 0.0)
    tokens = rows.retain_tokens
    for rank in range(world):
        rows = data.share(cfg, 0, 0, rank, world)
        others = sum(kl for other, kl in enumerate(kls) if other != rank) / tokens
        network.model.zero_grad(set_to_none=True)
        accumulate(network, rows, perturb(network, rows, cfg, 1.0), cfg, partial(add, others))
        gradients.append(flat_gradient(network))
    pushed, both = sum(harmful), sum(gradients)
    expected = literal_retain(network.model, data.retain, cfg)
    network.model.zero_grad(set_to_none=True)
    (0.1 * expected).backward()
    held = flat_gradient(network)
    assert (both - pushed - held).norm() <= 1e-5 * held.norm()
    share = pushed.norm() / (pushed.norm() + held.norm())
    assert share > 0.85
    assert 1e-14 < sum(kls) / tokens < 1e-7, "below the guard, 6.1e-7 nats a token"


def test_the_joint_attack_pushes_a_refusal_whose_probability_rounds_to_1(
    make_network: MakeNetwork, make_config: MakeConfig, harmful_rows: list[HarmfulRow], encode: Callable[..., Encoded]
) -> None:
    network = make_network()
    # Logits so far apart that the likeliest token is sure.
    network.base.lm_head.weight = torch.nn.Parameter(60 * network.embedding.weight.detach(), requires_grad=False)
    user, harmful = [8, 9, 10], [11, 12]
    row = encode(user, harmful)
    sure = int(network.model(input_ids=torch.tensor([row.ids[: row.response_span[0]]])).logits[0, -1].argmax())
    rows = [HarmfulRow(row, encode(user, [sure]))]
    attack = {"steps": 1, "step_size": 1.0, "step_rule": "raw", "unit": "absolute", "positions": "prompt", "objective": "joint"}
    cfg = make_config(away="unlikelihood", away_weight=0.0, toward_weight=1.0, attack=attack)
    found = network.response_logits(pair_batch(network, rows, cfg))
    assert token_logprobs(found.logits, found.targets)[-1].item() == 0.0
    found = find_perturbation(network, rows, cfg, 1.0).delta[0, 0, : row.response_span[0]]
    zero = torch.zeros(1, *found.shape, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(literal_attack_objective(network.model.double(), rows[0], zero, cfg), zero)
    assert gradient.norm() > 1.0
    assert torch.allclose(found.double(), -gradient[0], rtol=1e-3, atol=1e-3 * gradient.abs().max().item())


def test_several_steps_share_one_attack(
    make_network: MakeNetwork, make_config: MakeConfig, harmful_rows: list[HarmfulRow], retain_rows: list[Encoded]
) -> None:
    network = make_network()
    cfg = make_config(steps_per_attack=3, warmup=0.0, schedule="constant", attack={"steps": 4})
    rows, trainer, forwards = whole(harmful_rows, retain_rows), make_trainer(network, cfg, 8), [0]
    network.decoder.register_forward_hook(lambda *_: forwards.__setitem__(0, forwards[0] + 1))
    metrics = FineTuning(network, cfg, lambda _: rows).update(trainer, 0)
    state = next(iter(trainer.optimizer.state.values()))
    assert int(state["step"]) == 3
    # A prefix and 4 attack passes once; then 3 times a pair, a teacher and a retain pass, each with its prefix.
    assert forwards[0] == 5 + 3 * 6
    assert metrics["learning_rate"] == cfg.learning_rate
    assert len(metrics["attack_ce"]) == 5


def test_a_fresh_optimizer_begins_each_update_as_a_new_one_would(
    make_network: MakeNetwork, make_config: MakeConfig, harmful_rows: list[HarmfulRow], retain_rows: list[Encoded]
) -> None:
    """Against a trainer that is made anew for each update, weights going along."""
    settings: dict[str, Any] = {"steps_per_attack": 3, "warmup": 0.0, "schedule": "constant", "attack": {"steps": 2}}
    rows = whole(harmful_rows, retain_rows)

    def ends(anew: bool, **more: Any) -> dict[str, Tensor]:
        network, cfg = make_network(), make_config(**settings, **more)
        tuning, trainer = FineTuning(network, cfg, lambda _: rows), make_trainer(network, cfg, 8)
        for update in range(3):
            tuning.update(make_trainer(network, cfg, 8) if anew else trainer, update)
        return {name: parameter.detach().clone() for name, parameter in network.trainable().items()}

    fresh, expected, kept = ends(anew=False, fresh_optimizer=True), ends(anew=True), ends(anew=False)
    assert all(torch.equal(fresh[name], expected[name]) for name in fresh)
    assert not all(torch.allclose(fresh[name], kept[name], atol=1e-6) for name in fresh)


@pytest.mark.parametrize("name", ["dat", "lat", "capo"])
def test_activation_checkpointing_changes_nothing_but_memory(
    name: str, make_network: MakeNetwork, make_config: MakeConfig, harmful_rows: list[HarmfulRow], retain_rows: list[Encoded]
) -> None:
    cfg, rows = make_config(**OBJECTIVES[name]), whole(harmful_rows, retain_rows)
    plain = make_network(dtype=torch.float64)
    plain.model.train()
    loss, gradient = run(plain, rows, cfg)
    network = Network(make_network(dtype=torch.float64).model, checkpointing=True)
    network.model.train()
    forwards = [0]
    network.decoder.layers[1].mlp.register_forward_pre_hook(lambda *_: forwards.__setitem__(0, forwards[0] + 1))
    again, found = run(network, rows, cfg)
    reference = 1 + int(name == "capo")
    # Each pass with a gradient runs twice: the attack's, the pair's and the retain pass; the teacher's and reference's once.
    assert forwards[0] == 2 * (cfg.attack.steps + 2) + reference
    assert again == pytest.approx(loss, abs=1e-5)
    assert torch.allclose(found, gradient, atol=1e-4)


def test_dropout_is_off_in_a_checkpointed_attack(
    make_network: MakeNetwork, make_config: MakeConfig, harmful_rows: list[HarmfulRow]
) -> None:
    network = Network(make_network(dropout=0.5).model, checkpointing=True)
    network.model.train()
    first, second = (find_perturbation(network, harmful_rows, make_config(), 1.0).delta for _ in range(2))
    assert torch.equal(first, second)
    assert all(parameter.grad is None for parameter in network.model.parameters())


def test_a_layer_that_is_not_there_is_named(
    make_network: MakeNetwork, make_config: MakeConfig, harmful_rows: list[HarmfulRow]
) -> None:
    with pytest.raises(Exception, match=r"training.attack.layers = 7: the model has layers 0 to 1"):
        find_perturbation(make_network(), harmful_rows, make_config(attack={"steps": 1, "unit": "absolute", "layers": [7]}), 1.0)


def test_no_logits_are_made_on_prompt_positions(
    make_network: MakeNetwork, make_config: MakeConfig, harmful_rows: list[HarmfulRow], retain_rows: list[Encoded]
) -> None:
    """Over a whole update: every tensor of vocabulary width has one row a response token."""
    network, cfg = make_network(), make_config(attack={"steps": 3})
    rows, seen = whole(harmful_rows, retain_rows), []
    network.head.register_forward_hook(lambda _m, args, _o: seen.append(args[0].shape[:-1].numel()))
    run(network, rows, cfg)
    harmful = sum(b - a for a, b in (row.harmful.response_span for row in harmful_rows))
    refusal = sum(b - a for a, b in (row.refusal.response_span for row in harmful_rows))
    assert seen == [*itertools.repeat(harmful, 3), harmful + refusal, rows.retain_tokens, rows.retain_tokens]
