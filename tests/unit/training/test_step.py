"""One update: its loss against the definitions, its gradient against the split over workers, its guards."""

from __future__ import annotations

import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from dat_ray.config.training import TrainingConfig
from dat_ray.models.chat import Encoded
from dat_ray.training.attack import mean_embedding_norm
from dat_ray.training.batches import HarmfulRow
from dat_ray.training.fine_tuning import TrainingRows
from dat_ray.training.network import Network
from dat_ray.training.step import FineTuning, UpdateRows, accumulate, make_trainer, perturb
from dat_ray.training.terms import find_perturbation, retain_losses
from dat_ray.training.trainer import Diverged, no_reduce

MakeNetwork = Callable[..., Network]
MakeConfig = Callable[..., TrainingConfig]


def whole(harmful: list[HarmfulRow], retain: list[Encoded]) -> UpdateRows:
    return UpdateRows(harmful, retain, len(harmful), sum(b - a for a, b in (r.response_span for r in retain)))


def run(network: Network, rows: UpdateRows, cfg: TrainingConfig) -> tuple[list[float], Tensor]:
    """TERMS and the flat gradient of one worker."""
    network.model.zero_grad(set_to_none=True)
    found = perturb(network, rows, cfg, mean_embedding_norm(network.embedding))
    sums, _ = accumulate(network, rows, found, cfg, no_reduce)
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in network.trainable().values()]
    return sums.tolist()[:4], torch.cat([g.reshape(-1) for g in grads]).clone()


def logprobs_of_response(model: torch.nn.Module, row: Encoded, delta: Tensor | None) -> Tensor:
    """(tokens, V) log-probabilities through the model's own forward pass, one row, no padding."""
    embeddings = model.get_input_embeddings()(torch.tensor([row.ids]))
    if delta is not None:
        prompt = row.response_span[0]
        embeddings = embeddings + torch.nn.functional.pad(delta[:prompt], (0, 0, 0, len(row.ids) - prompt))
    low, high = row.response_span
    return model(inputs_embeds=embeddings).logits[0, low - 1 : high - 1].log_softmax(-1)


def test_loss_and_gradient_are_those_of_the_definition(
    make_network: MakeNetwork, make_config: MakeConfig, harmful_rows: list[HarmfulRow], retain_rows: list[Encoded]
) -> None:
    network = make_network(dtype=torch.float64)
    cfg = make_config(away_weight=0.3, toward_weight=0.7, retain_weight=0.25)
    terms, gradient = run(network, whole(harmful_rows, retain_rows), cfg)

    unit = mean_embedding_norm(network.embedding)
    deltas = find_perturbation(network, harmful_rows, cfg, unit).delta[0]
    away, toward, kls = list[Tensor](), list[Tensor](), list[Tensor]()
    for row, delta in zip(harmful_rows, deltas, strict=True):
        for encoded, found in ((row.harmful, away), (row.refusal, toward)):
            low, high = encoded.response_span
            logp = logprobs_of_response(network.model, encoded, delta)
            found.append(torch.stack([logp[i, encoded.ids[low + i]] for i in range(high - low)]).mean())
    for encoded in retain_rows:
        student = logprobs_of_response(network.model, encoded, None)
        with torch.no_grad(), network.model.disable_adapter():
            teacher = logprobs_of_response(network.model, encoded, None)
        kls.append((teacher.exp() * (teacher - student)).sum(-1))
    a, t, kl = torch.stack(away).mean(), -torch.stack(toward).mean(), torch.cat(kls).mean()
    loss = 0.3 * a + 0.7 * t + 0.25 * kl
    network.model.zero_grad(set_to_none=True)
    loss.backward()
    expected = torch.cat([p.grad.reshape(-1) for p in network.trainable().values() if p.grad is not None])

    assert terms == pytest.approx([a.item(), t.item(), kl.item(), loss.item()], abs=1e-6)
    assert kl.item() > 0.01
    assert torch.allclose(gradient, expected, atol=1e-6)
    assert gradient.norm() > 0.1


@pytest.mark.parametrize("world", [2, 3, 7])
def test_loss_and_gradient_do_not_depend_on_the_number_of_workers(
    world: int,
    make_network: MakeNetwork,
    make_config: MakeConfig,
    harmful_rows: list[HarmfulRow],
    retain_rows: list[Encoded],
) -> None:
    # Seven workers share six rows: one of them has none of either kind, and takes part with zeros.
    network = make_network(dtype=torch.float64)
    cfg = make_config(harmful_rows=6, retain_rows=5)
    data = TrainingRows(harmful_rows, retain_rows)
    terms, gradient = run(network, data.share(cfg, 0, 2, 0, 1), cfg)
    parts = [run(network, data.share(cfg, 0, 2, rank, world), cfg) for rank in range(world)]
    assert [sum(values) for values in zip(*(part[0] for part in parts), strict=True)] == pytest.approx(terms, abs=1e-6)
    assert torch.allclose(sum(part[1] for part in parts), gradient, atol=1e-6)


def test_without_steps_or_radius_the_update_is_diffusion_only(
    make_network: MakeNetwork, make_config: MakeConfig, harmful_rows: list[HarmfulRow], retain_rows: list[Encoded]
) -> None:
    network, rows = make_network(), whole(harmful_rows, retain_rows)
    plain, gradient = run(network, rows, make_config(attack={"steps": 0}))
    still, same = run(network, rows, make_config(attack={"steps": 3, "radius": 0.0}))
    attacked, other = run(network, rows, make_config())
    assert plain == still
    assert torch.equal(gradient, same)
    assert attacked[0] > plain[0] + 0.01, "the attack makes the harmful response likelier"
    assert not torch.allclose(gradient, other, atol=1e-3)
    # Diffusion-only, by the definition: the mean log-probability of y after the plain prompt.
    means = []
    for row in harmful_rows:
        low, high = row.harmful.response_span
        logp = logprobs_of_response(network.model, row.harmful, None)
        means.append(logp[range(high - low), row.harmful.ids[low:high]].mean().item())
    assert plain[0] == pytest.approx(sum(means) / len(means), abs=1e-5)


def test_retain_is_0_with_0_gradient_before_training(
    make_network: MakeNetwork, make_config: MakeConfig, retain_rows: list[Encoded]
) -> None:
    network = make_network(adapted=False, dropout=0.0)
    loss, divergences = retain_losses(network, retain_rows, make_config(), 16)
    loss.backward()
    assert len(divergences) == sum(b - a for a, b in (r.response_span for r in retain_rows))
    assert divergences.abs().max().item() < 1e-6
    assert max(p.grad.abs().max().item() for p in network.trainable().values() if p.grad is not None) < 1e-6


def test_rows_past_their_cutoffs_leave_only_the_retain_gradient(
    make_network: MakeNetwork, make_config: MakeConfig, harmful_rows: list[HarmfulRow], retain_rows: list[Encoded]
) -> None:
    network = make_network()
    _, held = run(network, whole(harmful_rows, retain_rows), make_config(away_cutoff=0.0, toward_cutoff=1e3))
    _, retain_only = run(network, whole([], retain_rows), make_config())
    assert retain_only.norm() > 1e-3
    assert torch.allclose(held, retain_only, atol=1e-7)


def test_the_gradient_is_clipped_to_its_norm(
    make_network: MakeNetwork, make_config: MakeConfig, harmful_rows: list[HarmfulRow], retain_rows: list[Encoded]
) -> None:
    network, cfg = make_network(), make_config(max_grad_norm=0.01, warmup=0.0)
    rows = whole(harmful_rows, retain_rows)
    metrics = FineTuning(network, cfg, lambda _: rows).update(make_trainer(network, cfg, 8), 0)
    squares = sum(p.grad.square().sum().item() for p in network.trainable().values() if p.grad is not None)
    assert metrics["gradient_norm"] > 0.1
    assert squares**0.5 == pytest.approx(0.01, rel=1e-3)
    assert metrics["learning_rate"] == cfg.learning_rate
    assert len(metrics["attack_ce"]) == cfg.attack.steps + 1
    assert metrics["attack_ce"][-1] == -metrics["away"] < metrics["attack_ce"][0]
    assert len(metrics["attack_norm"]) == cfg.attack.steps


def test_without_a_norm_the_gradient_is_as_it_is(
    make_network: MakeNetwork, make_config: MakeConfig, harmful_rows: list[HarmfulRow], retain_rows: list[Encoded]
) -> None:
    network, cfg = make_network(), make_config(max_grad_norm=float("inf"))
    _, gradient = run(network, whole(harmful_rows, retain_rows), cfg)
    metrics = FineTuning(network, cfg, lambda _: whole(harmful_rows, retain_rows)).update(make_trainer(network, cfg, 8), 0)
    left = torch.cat([p.grad.reshape(-1) for p in network.trainable().values() if p.grad is not None])
    assert torch.allclose(left, gradient, atol=1e-6)
    assert metrics["gradient_norm"] == pytest.approx(gradient.norm().item(), rel=1e-4)


def test_updates_lower_the_loss(
    make_network: MakeNetwork, make_config: MakeConfig, harmful_rows: list[HarmfulRow], retain_rows: list[Encoded]
) -> None:
    network, cfg = make_network(adapted=False), make_config(warmup=0.0, away_cutoff=-8.0)
    rows, trainer = whole(harmful_rows, retain_rows), make_trainer(network, cfg, 30)
    log = [FineTuning(network, cfg, lambda _: rows).update(trainer, i) for i in range(12)]
    assert log[-1]["away"] < log[0]["away"] - 1
    assert log[-1]["toward"] < log[0]["toward"] - 1
    assert log[0]["retain_kl"] == pytest.approx(0, abs=1e-6)
    assert log[-1]["retain_kl"] > 0


@pytest.mark.parametrize(("harm", "term"), [(True, "away"), (False, "retain_kl")], ids=["harmful rows", "retain rows only"])
def test_a_loss_that_is_not_a_number_names_update_and_term(
    harm: bool,
    term: str,
    make_network: MakeNetwork,
    make_config: MakeConfig,
    harmful_rows: list[HarmfulRow],
    retain_rows: list[Encoded],
) -> None:
    network, cfg = make_network(), make_config()
    first = next(iter(network.trainable().values()))
    first.data[0] = float("nan")
    before = {name: p.detach().clone() for name, p in network.trainable().items()}
    rows = whole(harmful_rows if harm else [], retain_rows)
    with pytest.raises(Diverged, match=rf"{term} is nan at update 5; the last checkpoint is kept") as caught:
        FineTuning(network, cfg, lambda _: rows, unit_norm=1.0).update(make_trainer(network, cfg, 8), 5)
    assert caught.value.exit_code == 1
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    for name, parameter in network.trainable().items():
        assert torch.equal(parameter.nan_to_num(7.0), before[name].nan_to_num(7.0))


def test_a_gradient_that_is_not_finite_is_named(
    make_network: MakeNetwork, make_config: MakeConfig, harmful_rows: list[HarmfulRow], retain_rows: list[Encoded]
) -> None:
    network, cfg = make_network(), make_config()
    next(iter(network.trainable().values())).register_hook(lambda grad: grad * float("inf"))
    rows = whole(harmful_rows, retain_rows)
    with pytest.raises(Diverged, match=r"gradient norm is (inf|nan) at update 2"):
        FineTuning(network, cfg, lambda _: rows, unit_norm=1.0).update(make_trainer(network, cfg, 8), 2)
