"""PGD with discretization: projections against other algorithms and hand values, schedules against torch's, and a search."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from dat_ray.config.evaluation import PgdConfig
from dat_ray.evaluation.search.pgd import (
    Pgd,
    clip_rows,
    embedding_table,
    entropy_at,
    project_entropy,
    project_simplex,
    rate_at,
)
from dat_ray.evaluation.search.suffix import SuffixModel
from tests.unit.evaluation.suffix_models import GOAL, TARGET, Parts, in_pieces, make_parts, make_task, plain_loss

SMALL = {"steps": 12, "suffix_tokens": 4, "constant_steps": 4, "period": 4, "anneal_steps": 6}


@pytest.fixture(scope="module")
def parts() -> Parts:
    return make_parts()


def pgd(parts: Parts, **fields: object) -> Pgd:
    return Pgd(SuffixModel(*parts), PgdConfig.model_validate({**SMALL, **fields}))


def by_bisection(values: Tensor) -> Tensor:
    """The simplex's nearest point by halving the interval that holds the threshold."""
    low, high = (values - 1).min(dim=1).values, values.max(dim=1).values
    for _ in range(200):
        middle = (low + high) / 2
        above = (values - middle[:, None]).clamp(min=0).sum(dim=1) > 1
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    return (values - low[:, None]).clamp(min=0)


@pytest.mark.parametrize("scale", [0.01, 1.0, 100.0])
def test_the_projection_onto_the_simplex_is_that_by_bisection(scale: float) -> None:
    values = torch.randn(50, 30, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * scale
    torch.testing.assert_close(project_simplex(values), by_bisection(values), atol=1e-9, rtol=0)


def test_the_projection_onto_the_simplex_by_hand() -> None:
    values = torch.tensor([[0.5, 0.5, 0.0], [2.0, 0.0, 0.0], [1.0, 0.8, 0.0], [0.0, 0.0, 0.0], [0.3, -torch.inf, 0.1]])
    wanted = [[0.5, 0.5, 0.0], [1.0, 0.0, 0.0], [0.6, 0.4, 0.0], [1 / 3, 1 / 3, 1 / 3], [0.6, 0.0, 0.4]]
    torch.testing.assert_close(project_simplex(values), torch.tensor(wanted))


def gini(rows: Tensor) -> Tensor:
    return 1 - rows.square().sum(dim=1)


def test_the_entropy_projection_by_hand() -> None:
    # d = 3, strength 0.4: radius sqrt(0.4 * 2/3); the row lies 0.21602 from its center, in direction (1/6, -1/30, -2/15).
    row = torch.tensor([[0.5, 0.3, 0.2]], dtype=torch.float64)
    factor = math.sqrt(0.4 * 2 / 3) / math.sqrt((1 / 6) ** 2 + (1 / 30) ** 2 + (2 / 15) ** 2)
    wanted = torch.tensor([[1 / 3 + factor / 6, 1 / 3 - factor / 30, 1 / 3 - factor * 2 / 15]], dtype=torch.float64)
    found = project_entropy(row, 0.4)
    torch.testing.assert_close(found, wanted)
    assert found[0].tolist() == pytest.approx([0.7318, 0.2536, 0.0146], abs=1e-4)
    assert gini(found).item() == pytest.approx(0.6 * 2 / 3), "the index that was asked for"


def test_the_entropy_projection_leaves_what_is_sharp_enough_and_counts_only_tokens_with_weight() -> None:
    rows = torch.tensor([[0.9, 0.1, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0], [0.25, 0.25, 0.25, 0.25]])
    torch.testing.assert_close(project_entropy(rows, 0.4), rows), "far enough, a single token, and its own center"
    torch.testing.assert_close(project_entropy(rows, 0.0), rows)
    two = project_entropy(torch.tensor([[0.6, 0.4, 0.0]]), 0.25)
    # d = 2: from (1/2, 1/2) out to the distance sqrt(0.25 / 2), along (1, -1) / sqrt(2).
    assert two[0].tolist() == pytest.approx([0.75, 0.25, 0.0])
    torch.testing.assert_close(project_entropy(torch.tensor([[0.6, 0.4, 0.0]]), 1.0), torch.tensor([[1.0, 0.0, 0.0]]))


def test_the_entropy_projection_stays_on_the_simplex_and_bounds_the_index() -> None:
    rng = torch.Generator().manual_seed(2)
    rows = project_simplex(torch.rand(200, 12, generator=rng, dtype=torch.float64) * 0.4)
    for strength in (0.1, 0.4, 0.9):
        found = project_entropy(rows, strength)
        count = (rows > 0).sum(dim=1).double()
        torch.testing.assert_close(found.sum(dim=1), torch.ones(200, dtype=torch.float64))
        assert (found >= 0).all()
        assert (gini(found) <= gini(rows) + 1e-12).all(), "never blunter"
        inside = (found > 0).sum(dim=1) == count
        bound = (1 - strength) * (1 - 1 / count)
        assert (gini(found)[inside] <= bound[inside] + 1e-9).all()
        assert (found.argmax(dim=1) == rows.argmax(dim=1)).all()


def test_the_rate_is_that_of_torchs_schedulers() -> None:
    config = PgdConfig(rate=0.11, peak_rate=0.325, constant_steps=100, period=60)
    optimizer = torch.optim.Adam([nn.Parameter(torch.zeros(1))], config.rate)
    constant = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
    swing = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, T_0=60, eta_min=0.325)
    both = torch.optim.lr_scheduler.SequentialLR(optimizer, [constant, swing], milestones=[100])
    for step in range(1, 400):
        assert rate_at(step, config) == pytest.approx(optimizer.param_groups[0]["lr"]), step
        optimizer.step()
        both.step()


def test_the_bound_is_annealed_and_swings_with_the_rate() -> None:
    config = PgdConfig()
    assert entropy_at(1, config) == 0.0
    assert entropy_at(51, config) == pytest.approx(0.4 * 50 / 250 * 0.11 / 0.325)
    # 240 steps after the constant ones: the start of the fifth period, where the rate is its lowest again.
    assert entropy_at(341, config) == pytest.approx(0.4 * 0.11 / 0.325)
    assert max(entropy_at(step, config) for step in range(251, 600)) == pytest.approx(0.4, abs=1e-3)


def test_rows_longer_than_the_bound_are_shortened() -> None:
    torch.testing.assert_close(clip_rows(torch.tensor([[3.0, 4.0], [0.3, 0.4]]), 1.0), torch.tensor([[0.6, 0.8], [0.3, 0.4]]))
    assert clip_rows(torch.tensor([[3e9, 4.0]]), PgdConfig(gradient_norm=math.inf).gradient_norm).tolist() == [[3e9, 4.0]]


def test_the_gradient_at_a_mixture_is_autograds_through_the_weights(parts: Parts) -> None:
    network, _, chat = parts
    model, task = make_task(parts)
    table = embedding_table(network.embedding)
    mixtures = torch.rand(4, len(table), generator=torch.Generator().manual_seed(0)).softmax(dim=1)
    loss, gradient = model.gradient(task, [70, 71, 72, 73], mixtures @ table)
    before, between = chat.segments()
    hot = mixtures.clone().requires_grad_(True)
    embed = network.embedding
    left = embed(torch.tensor([*before, *task.goal_ids]))
    right = embed(torch.tensor([*between, *task.response]))
    logits = network.model(inputs_embeds=torch.cat([left, hot @ table, right])[None]).logits[0, -len(task.response) - 1 : -1]
    plain = nn.functional.cross_entropy(logits, torch.tensor(task.response))
    (wanted,) = torch.autograd.grad(plain, hot)
    assert loss == pytest.approx(plain.item(), abs=1e-5)
    torch.testing.assert_close(gradient @ table.T, wanted, atol=2e-4, rtol=1e-3)


def test_a_table_holds_the_factor_of_a_family_that_scales_its_embeddings() -> None:
    class Scaled(nn.Embedding):
        def forward(self, ids: Tensor) -> Tensor:
            return super().forward(ids) * 8.0

    embedding = Scaled(10, 4)
    torch.testing.assert_close(embedding_table(embedding), embedding.weight.detach() * 8.0)


def test_a_step_is_adam_and_both_projections(parts: Parts) -> None:
    """The first three steps, by torch's Adam on the weights themselves."""
    attack, (model, task) = pgd(parts, gradient_norm=1e6), make_task(parts)
    state = attack.begin(GOAL, TARGET, seed=1).state
    table = embedding_table(parts[0].embedding)
    weights = nn.Parameter(state.mixtures.clone())
    optimizer = torch.optim.Adam([weights], 0.11)
    for number in (1, 2, 3):
        for group in optimizer.param_groups:
            group["lr"] = rate_at(number, attack._config)
        _, slope = model.gradient(task, state.mixtures.argmax(dim=1).tolist(), weights.detach() @ table)
        weights.grad = (slope @ table.T) * model.printable
        optimizer.step()
        with torch.no_grad():
            moved = project_simplex(weights.masked_fill(~model.printable, -torch.inf))
            weights.copy_(project_entropy(moved, entropy_at(number, attack._config)))
        state = attack.step(task, state, number).state
        torch.testing.assert_close(state.mixtures, weights.detach(), atol=1e-5, rtol=1e-4)


def test_the_mixtures_stay_on_the_simplex_of_printable_tokens_and_sharpen(parts: Parts) -> None:
    attack, (model, _) = pgd(parts, entropy=0.9), make_task(parts)
    start = attack.begin(GOAL, TARGET, seed=1).state.mixtures
    end = attack.search(GOAL, TARGET, seed=1).state.mixtures
    for mixtures in (start, end):
        torch.testing.assert_close(mixtures.sum(dim=1), torch.ones(4))
        assert (mixtures >= 0).all()
        assert not mixtures[:, ~model.printable].any()
    assert gini(end).mean() < 0.4 < 0.9 < gini(start).min()


def test_what_is_asked_has_the_lowest_exact_loss(parts: Parts) -> None:
    found = pgd(parts, attempts=3, steps=30).search(GOAL, TARGET, seed=1)
    losses = [plain_loss(parts, parts[2].prompt_ids(prompt)) for prompt in found.prompts]
    assert losses == pytest.approx([min(found.losses[: k + 1]) for k in (10, 20, 30)], abs=1e-4)
    assert min(found.losses) < found.losses[0] - 0.01
    assert found.model_calls == 1 + 30 + sum(found.survived)
    assert found.drawn == [1] * 30


def test_without_a_better_suffix_the_search_goes_back_to_its_best(parts: Parts) -> None:
    attack = pgd(parts, patience=3, steps=40)
    search, back = attack.begin(GOAL, TARGET, seed=1), 0
    for _ in range(40):
        before = search
        search = attack.advance(GOAL, TARGET, search, stop=lambda: True)
        improved = search.losses[-1] < before.state.best_loss
        assert search.state.stale == (0 if improved else (before.state.stale + 1) % 3)
        if not improved and before.state.stale == 2:
            back += 1
            assert search.state.mixtures.argmax(dim=1).equal(search.state.best_tokens)
            assert search.state.mixtures.max(dim=1).values.tolist() == [1.0] * 4
    assert back > 0


def test_a_search_depends_on_its_seed_alone(parts: Parts) -> None:
    one = pgd(parts).search(GOAL, TARGET, seed=1)
    assert pgd(parts).search(GOAL, TARGET, seed=1).losses == one.losses
    assert pgd(parts).search(GOAL, TARGET, seed=2).losses != one.losses


def test_a_search_that_stops_at_every_step_gives_what_one_go_gives(parts: Parts) -> None:
    whole, parted = pgd(parts, attempts=2).search(GOAL, TARGET, seed=1), in_pieces(lambda: pgd(parts, attempts=2), seed=1)
    assert (parted.losses, parted.prompts, parted.prompt_calls) == (whole.losses, whole.prompts, whole.prompt_calls)
    assert parted.state.mixtures.equal(whole.state.mixtures)


def test_a_search_can_be_gone_on_with_twice_from_one_state(parts: Parts) -> None:
    begun = pgd(parts).advance(GOAL, TARGET, pgd(parts).begin(GOAL, TARGET, seed=1), stop=lambda: True)
    first = pgd(parts).advance(GOAL, TARGET, begun, stop=lambda: False)
    assert pgd(parts).advance(GOAL, TARGET, begun, stop=lambda: False).losses == first.losses


def test_a_suffix_that_joins_the_goal_is_counted_as_one_that_did_not_survive(
    monkeypatch: pytest.MonkeyPatch, parts: Parts
) -> None:
    attack = pgd(parts)
    monkeypatch.setattr(attack.model, "suffix_of", lambda task, message: None)
    found = attack.search(GOAL, TARGET, seed=1)
    assert (found.survived, found.drawn) == ([0] * 12, [1] * 12)
    assert found.prompts == [GOAL]
