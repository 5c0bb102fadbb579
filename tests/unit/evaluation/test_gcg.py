"""GCG and the embedding attack on a tiny random model: against plain forms, and doing what they are for."""

from __future__ import annotations

import pytest
import torch

from dat_ray.config.evaluation import GcgConfig
from dat_ray.config.training import AttackConfig
from dat_ray.evaluation.search.gcg import REDRAWS, Gcg, propose
from dat_ray.evaluation.search.suffix import SuffixModel, printable_tokens
from dat_ray.models.chat import ChatFormat
from dat_ray.training.attacked import attack_embeddings
from dat_ray.training.network import Network
from tests.unit.diffusion.tiny import LETTERS, gapped_tokenizer
from tests.unit.evaluation.suffix_models import GOAL, TARGET, Parts, in_pieces, make_parts, make_task, plain_loss
from tests.unit.models.tiny import make_model
from tests.unit.models.tokenizers_of_kinds import FORMS, make_kind

SMALL = {"steps": 8, "search_width": 24, "top_k": 32, "suffix": "x x x x", "batch_size": 7}


@pytest.fixture(scope="module")
def parts() -> Parts:
    return make_parts()


def gcg(parts: Parts, **fields: object) -> Gcg:
    return Gcg(SuffixModel(*parts), GcgConfig.model_validate({**SMALL, **fields}))


def test_the_loss_falls_and_the_last_prompt_reaches_the_lowest(parts: Parts) -> None:
    found = gcg(parts, attempts=4).search(GOAL, TARGET, seed=1)
    assert len(found.losses) == 9
    assert min(found.losses) < found.losses[0] - 0.05
    assert len(found.prompts) == 4
    losses = [plain_loss(parts, parts[2].prompt_ids(prompt)) for prompt in found.prompts]
    # What is asked as text is what was searched as tokens.
    assert losses == pytest.approx([min(found.losses[: k + 1]) for k in (2, 4, 6, 8)], abs=1e-4)
    assert all(prompt.startswith(GOAL) for prompt in found.prompts)
    start = plain_loss(parts, parts[2].prompt_ids(f"{GOAL} x x x x"))
    assert found.losses[0] == pytest.approx(start, abs=1e-4)


@pytest.mark.parametrize("form", ["llama2", "zephyr"])
def test_a_search_with_word_start_tokens_is_asked_as_it_was_searched(form: str) -> None:
    tokenizer = make_kind("normalizer", FORMS[form])
    model = make_model(len(tokenizer)).eval().requires_grad_(False)
    parts = Network(model), tokenizer, ChatFormat(tokenizer)
    attack, (model, task) = gcg(parts), make_task(parts)
    start = attack.begin(GOAL, TARGET, seed=1).best
    assert model.text(task, start) == f"{GOAL} x x x x", "a suffix that begins a word keeps its space"
    found = attack.search(GOAL, TARGET, seed=1)
    assert len(set(found.losses)) > 4, "the suffix changes: its candidates survive the way through text"
    assert plain_loss(parts, parts[2].prompt_ids(found.prompts[-1])) == pytest.approx(min(found.losses), abs=1e-4)


def test_a_search_depends_on_its_seed_alone(parts: Parts) -> None:
    one = gcg(parts).search(GOAL, TARGET, seed=1)
    assert gcg(parts, batch_size=24).search(GOAL, TARGET, seed=1).prompts == one.prompts
    assert gcg(parts).search(GOAL, TARGET, seed=2).losses != one.losses


def test_scores_are_the_gradient_at_one_hot_tokens(parts: Parts) -> None:
    network, _, chat = parts
    attack, (_, task) = gcg(parts), make_task(parts)
    goal_ids, response = chat.user_ids(GOAL), chat.response_ids(TARGET)
    suffix = attack.begin(GOAL, TARGET, seed=1).best
    before, between = chat.segments()
    ids = torch.tensor([*before, *goal_ids, *suffix, *between, *response])
    weight = network.embedding.weight
    hot = torch.nn.functional.one_hot(ids, len(weight)).float().requires_grad_(True)
    logits = network.model(inputs_embeds=(hot @ weight)[None]).logits[0, -len(response) - 1 : -1]
    loss = torch.nn.functional.cross_entropy(logits, torch.tensor(response))
    (gradient,) = torch.autograd.grad(loss, hot)
    low = len(before) + len(goal_ids)
    scores = attack.scores(task, suffix)
    allowed = printable_tokens(parts[1], len(weight))
    torch.testing.assert_close(scores[:, allowed], gradient[low : low + len(suffix)][:, allowed], atol=1e-5, rtol=1e-3)
    assert torch.isinf(scores[:, ~allowed]).all()


def test_candidates_exchange_as_many_tokens_as_asked_for_the_best_ones() -> None:
    suffix, scores = torch.arange(5), torch.rand(5, 40, generator=torch.Generator().manual_seed(0))
    config = GcgConfig(search_width=400, top_k=3, n_replace=2)
    found = propose(suffix, scores, config, torch.Generator().manual_seed(3), top_k=3)
    assert found.shape == (400, 5)
    changed = found != suffix
    assert int(changed.sum(dim=1).max()) == 2
    best = scores.topk(3, largest=False).indices
    for position in range(5):
        drawn = set(found[changed[:, position], position].tolist())
        assert drawn == set(best[position].tolist()) - {position}
    # Each position is as likely as another: 400 * 2 / 5 each, give or take six standard deviations.
    assert all(abs(int(count) - 160) < 60 for count in changed.sum(dim=0))


def test_special_and_unprintable_tokens_are_out(parts: Parts) -> None:
    tokenizer = parts[1]
    allowed = printable_tokens(tokenizer, len(tokenizer) + 3)
    assert not allowed[: len(tokenizer.all_special_ids)].any()
    assert not allowed[-3:].any()
    kept = tokenizer.batch_decode([[i] for i in allowed.nonzero().flatten().tolist()])
    assert all(text.isascii() and text.isprintable() for text in kept)


def test_tokens_where_ids_have_gaps() -> None:
    """The last letters have ids past the number of tokens; without a token there is nothing to print."""
    gapped = gapped_tokenizer()
    ids = gapped.get_vocab()
    allowed = printable_tokens(gapped, max(ids.values()) + 3)
    assert set(allowed.nonzero().flatten().tolist()) == {i for text, i in ids.items() if text in LETTERS and text != "\n"}
    assert len(printable_tokens(gapped, 12)) == 12


def test_the_embedding_attack_lowers_its_loss_and_leaves_the_template_alone(parts: Parts) -> None:
    network, _, chat = parts
    row = chat.encode(GOAL, TARGET)
    assert row is not None
    embeddings, losses = attack_embeddings(network, row, AttackConfig(steps=6, step_size=0.2))
    assert len(losses) == 7
    assert losses[-1] < losses[0] - 0.1
    ids = torch.tensor(chat.prompt_ids(GOAL))
    moved = (embeddings[0] - network.embedding(ids)).norm(dim=-1) > 0
    before, between = chat.segments()
    assert moved.tolist() == [False] * len(before) + [True] * len(chat.user_ids(GOAL)) + [False] * len(between)
    # The perturbed prompt, run on its own, gives the loss that was reported.
    response = chat.response_ids(TARGET)
    whole = torch.cat([embeddings, network.embedding(torch.tensor([response]))], dim=1)
    with torch.no_grad():
        logits = network.model(inputs_embeds=whole).logits[0, -len(response) - 1 : -1]
    assert torch.nn.functional.cross_entropy(logits, torch.tensor(response)).item() == pytest.approx(losses[-1], abs=1e-4)


def test_a_search_that_stops_at_every_step_gives_what_one_go_gives(parts: Parts) -> None:
    assert in_pieces(lambda: gcg(parts, attempts=4), seed=1) == gcg(parts, attempts=4).search(GOAL, TARGET, seed=1)


def test_each_prompt_carries_the_calls_until_it_was_known(parts: Parts) -> None:
    found = gcg(parts, attempts=4).search(GOAL, TARGET, seed=1)
    # One for the start; a gradient and the survivors in each step.
    calls = [1]
    for survived in found.survived:
        calls.append(calls[-1] + 1 + survived)
    assert found.prompt_calls == [calls[step] for step in (2, 4, 6, 8)]
    assert found.model_calls == calls[-1]
    assert found.drawn == [24] * 8
    assert all(0 < survived <= 24 for survived in found.survived)


def test_where_no_candidate_survives_the_search_says_so_and_draws_again() -> None:
    parts = make_parts(survives=False)
    found = gcg(parts, attempts=2).search(GOAL, TARGET, seed=1)
    assert found.survived == [0] * 8
    assert found.drawn == [24 * (1 + REDRAWS)] * 8
    # A gradient a step, and no candidate's loss; the suffix stays what it was.
    assert found.model_calls == 1 + 8
    assert len(set(found.losses)) == 1
    assert found.best == parts[2].user_ids(f"{GOAL} x x x x")[len(parts[2].user_ids(GOAL)) :]


def test_candidates_are_drawn_again_from_more_tokens(monkeypatch: pytest.MonkeyPatch, parts: Parts) -> None:
    attack = gcg(parts, top_k=2, search_width=6)
    seen: list[tuple[int, ...]] = []

    def survives(task: object, suffix: list[int]) -> bool:
        seen.append(tuple(suffix))
        return len(seen) > 12

    monkeypatch.setattr(attack.model, "survives", survives)
    search = attack.advance(GOAL, TARGET, attack.begin(GOAL, TARGET, seed=1), stop=lambda: True)
    assert (search.drawn, search.survived) == ([18], [6])
    _, task = make_task(parts)
    scores = attack.scores(task, attack.begin(GOAL, TARGET, seed=1).best)
    start = attack.begin(GOAL, TARGET, seed=1).best
    for draw, top_k in enumerate((2, 4, 8)):
        best = scores.topk(top_k, largest=False).indices
        for row in seen[6 * draw : 6 * draw + 6]:
            assert all(token in best[at] for at, token in enumerate(row) if token != start[at])
    assert any(token not in scores.topk(2, largest=False).indices[at] for row in seen[12:18] for at, token in enumerate(row))


def test_no_more_tokens_are_considered_than_may_be_used(parts: Parts) -> None:
    model, _ = make_task(parts)
    found = gcg(parts, top_k=10_000, steps=2, search_width=200).search(GOAL, TARGET, seed=1)
    assert not set(found.best) - set(model.printable.nonzero().flatten().tolist())
    assert found.survived[0] > 0
