"""Likelihoods under the attack of training are those that its own update computes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from dat_ray.config.training import TrainingConfig
from dat_ray.training.attack import mean_embedding_norm
from dat_ray.training.attacked import HarmfulScorer
from dat_ray.training.batches import HarmfulRow
from dat_ray.training.network import Network
from dat_ray.training.terms import find_perturbation, harmful_losses

FORMS = [
    {},
    {"positions": "prompt", "step_rule": "sign", "radius": 0.3},
    {"positions": "sequence", "step_rule": "adam", "iterate": "best"},
    {"layers": ("embedding", 0), "unit": "absolute", "step_rule": "raw"},
    {"objective": "joint"},
]


def pairs(rows: list[HarmfulRow]) -> list[tuple]:
    return [(row.harmful, row.refusal) for row in rows]


def config(make_config: Callable[..., TrainingConfig], **attack: object) -> TrainingConfig:
    return make_config(attack={"steps": 3, "step_size": 0.2, **attack})


@pytest.mark.parametrize("form", FORMS, ids=["user", "ball", "best", "layers", "joint"])
def test_it_is_the_away_term_of_an_update(
    form: dict,
    make_network: Callable[..., Network],
    make_config: Callable[..., TrainingConfig],
    harmful_rows: list[HarmfulRow],
) -> None:
    network, cfg = make_network(), config(make_config, **form)
    delta = find_perturbation(network, harmful_rows, cfg, mean_embedding_norm(network.embedding)).delta
    with network.frozen(), torch.no_grad():
        _, away, _ = harmful_losses(network, harmful_rows, delta, cfg, len(harmful_rows))
    found = HarmfulScorer(network, cfg).score(pairs(harmful_rows))
    assert [one.attacked for one in found] == pytest.approx(away.tolist(), rel=1e-4, abs=1e-4)
    assert any(abs((one.attacked or 0.0) - one.plain) > 0.01 for one in found)


def test_plain_is_the_mean_log_p_of_the_responses_tokens(
    make_network: Callable[..., Network], make_config: Callable[..., TrainingConfig], harmful_rows: list[HarmfulRow]
) -> None:
    network = make_network()
    found = HarmfulScorer(network, config(make_config)).score(pairs(harmful_rows))
    for one, row in zip(found, harmful_rows, strict=True):
        low, high = row.harmful.response_span
        ids = torch.tensor([row.harmful.ids])
        with torch.no_grad():
            logs = network.model(ids).logits[0, low - 1 : high - 1].double().log_softmax(-1)
        assert one.plain == pytest.approx(logs.gather(1, ids[0, low:high, None]).mean().item(), abs=1e-4)


def test_a_row_has_its_own_perturbation_whatever_is_beside_it(
    make_network: Callable[..., Network], make_config: Callable[..., TrainingConfig], harmful_rows: list[HarmfulRow]
) -> None:
    scorer = HarmfulScorer(make_network(dtype=torch.float64), config(make_config, step_rule="raw"))
    together = scorer.score(pairs(harmful_rows))
    alone = [scorer.score([one])[0] for one in pairs(harmful_rows)]
    for one, other in zip(together, alone, strict=True):
        assert (one.plain, one.attacked) == pytest.approx((other.plain, other.attacked), abs=1e-4)


def test_without_steps_nothing_is_attacked_and_steps_of_no_size_change_nothing(
    make_network: Callable[..., Network], make_config: Callable[..., TrainingConfig], harmful_rows: list[HarmfulRow]
) -> None:
    network = make_network()
    assert {one.attacked for one in HarmfulScorer(network, config(make_config, steps=0)).score(pairs(harmful_rows))} == {None}
    for one in HarmfulScorer(network, config(make_config, step_size=0.0)).score(pairs(harmful_rows)):
        assert one.attacked == pytest.approx(one.plain, abs=1e-5)
    assert all(parameter.grad is None for parameter in network.model.parameters())
