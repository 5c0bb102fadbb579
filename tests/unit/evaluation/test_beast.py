"""BEAST on a tiny random model: against brute force, the plain model and the law of its draws."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from dat_ray.config.evaluation import BeastConfig
from dat_ray.evaluation.search.beast import DRAWS_PER_BRANCH, Beast, draw
from dat_ray.evaluation.search.suffix import SuffixModel
from tests.unit.evaluation.suffix_models import GOAL, TARGET, Parts, in_pieces, make_parts, make_task, plain_loss

SMALL = {"suffix_tokens": 5, "beams": 4, "branches": 3, "batch_size": 7}


@pytest.fixture(scope="module")
def parts() -> Parts:
    return make_parts()


def beast(parts: Parts, **fields: object) -> Beast:
    return Beast(SuffixModel(*parts), BeastConfig.model_validate({**SMALL, **fields}))


def test_the_next_token_is_that_of_the_plain_model_inside_the_user_message(parts: Parts) -> None:
    network, _, chat = parts
    model, task = make_task(parts)
    before, _ = chat.segments()
    batches: list[list[list[int]]] = [[[]], [[70, 71], [72, 73], [74, 75]]]
    for suffixes in batches:
        found = model.next_logits(task, suffixes, batch_size=2)
        for suffix, row in zip(suffixes, found, strict=True):
            with torch.no_grad():
                plain = network.model(torch.tensor([[*before, *chat.user_ids(GOAL), *suffix]])).logits[0, -1]
            torch.testing.assert_close(row, plain, atol=1e-4, rtol=1e-4)


def test_draws_have_the_law_of_drawing_without_replacement() -> None:
    probabilities = torch.tensor([0.5, 0.3, 0.15, 0.05])
    pairs = torch.zeros(4, 4)
    rows, seeds = 250, 40
    for seed in range(seeds):
        for first, second in draw(probabilities.log().repeat(rows, 1), seed, 1, 2).tolist():
            pairs[first, second] += 1
    for first, second in product(range(4), range(4)):
        p = probabilities[first] * probabilities[second] / (1 - probabilities[first]) if first != second else torch.tensor(0.0)
        # Six standard deviations.
        assert abs(pairs[first, second] / (rows * seeds) - p) <= 6 * (p * (1 - p) / (rows * seeds)) ** 0.5


def test_a_step_takes_the_best_of_all_drawn_extensions(parts: Parts) -> None:
    attack, (model, task) = beast(parts), make_task(parts)
    chat = parts[2]
    before, between = chat.segments()
    state, beams = attack.begin(GOAL, TARGET, seed=3).state, [list[int]()]
    for number in (1, 2, 3):
        step = attack.step(task, state, number)
        candidates = []
        for row, beam in enumerate(beams):
            with torch.no_grad():
                logits = parts[0].model(torch.tensor([[*before, *task.goal_ids, *beam]])).logits[0, -1].double()
            logits[~model.ordinary] = -torch.inf
            wanted = 4 if beam == [] else 3
            tokens = draw(logits[None].repeat(row + 1, 1).float(), 3, number, 40)[row].tolist()
            candidates += [[*beam, t] for t in tokens if model.survives(task, [*beam, t])][:wanted]
        losses = [plain_loss(parts, [*before, *task.goal_ids, *one, *between]) for one in candidates]
        order = sorted(range(len(losses)), key=losses.__getitem__)[:4]
        assert step.state.beams == [candidates[i] for i in order]
        assert step.loss == pytest.approx(losses[order[0]], abs=1e-4)
        assert (step.calls, step.survived) == (len(beams) + len(candidates), len(candidates))
        state, beams = step.state, step.state.beams


def test_with_all_tokens_drawn_it_is_the_exhaustive_search_of_a_beam(parts: Parts) -> None:
    """As many branches as there are tokens: the two-token suffix found is the best extension of any one-token beam."""
    model, task = make_task(parts)
    tokens = [i for i in model.ordinary.nonzero().flatten().tolist() if model.survives(task, [i])]
    attack = beast(parts, suffix_tokens=2, beams=len(tokens) + 50, branches=2, batch_size=64)
    state = attack.begin(GOAL, TARGET, seed=1).state
    first = attack.step(task, state, 1)
    assert sorted(beam[0] for beam in first.state.beams) == sorted(tokens)
    assert first.loss == pytest.approx(min(model.losses(task, [[t] for t in tokens], 64)), abs=1e-5)


def test_what_is_asked_is_the_best_prompt_of_any_length(parts: Parts) -> None:
    found = beast(parts, attempts=5).search(GOAL, TARGET, seed=1)
    assert len(found.losses) == 6
    losses = [plain_loss(parts, parts[2].prompt_ids(prompt)) for prompt in found.prompts]
    assert losses == pytest.approx([min(found.losses[: k + 1]) for k in range(1, 6)], abs=1e-4)
    assert min(found.losses) < found.losses[0]
    assert found.prompt_calls[-1] == found.model_calls
    # The goal, the first token's one beam, then four beams.
    assert found.model_calls == 1 + 1 + 4 * 4 + sum(found.survived)


def test_a_search_depends_on_its_seed_alone(parts: Parts) -> None:
    one = beast(parts).search(GOAL, TARGET, seed=1)
    assert beast(parts, batch_size=1).search(GOAL, TARGET, seed=1).prompts == one.prompts
    assert beast(parts, batch_size=64).search(GOAL, TARGET, seed=1).state == one.state
    assert beast(parts).search(GOAL, TARGET, seed=2).state.beams != one.state.beams


def test_a_search_that_stops_at_every_step_gives_what_one_go_gives(parts: Parts) -> None:
    assert in_pieces(lambda: beast(parts, attempts=2), seed=1) == beast(parts, attempts=2).search(GOAL, TARGET, seed=1)


def test_where_no_token_survives_the_search_says_so() -> None:
    found = beast(make_parts(survives=False)).search(GOAL, TARGET, seed=1)
    assert found.survived == [0] * 5
    assert found.drawn == [4 * DRAWS_PER_BRANCH] * 5
    assert found.prompts == [GOAL], "the goal alone is all there is to ask"
