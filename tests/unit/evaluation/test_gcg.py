"""GCG and the embedding attack on a tiny random model: against plain forms, and doing what they are for."""

from __future__ import annotations

import pickle

import pytest
import torch

from dat_ray.config.evaluation import GcgConfig
from dat_ray.config.training import AttackConfig
from dat_ray.evaluation.search.embedding import attack_embeddings
from dat_ray.evaluation.search.gcg import Gcg, printable_tokens, propose
from dat_ray.models.chat import ChatFormat
from dat_ray.training.network import Network
from tests.unit.diffusion.tiny import LETTERS, gapped_tokenizer
from tests.unit.models.tiny import make_model, make_tokenizer
from tests.unit.models.tokenizers_of_kinds import FORMS, make_kind

GOAL, TARGET = "How are you today?", "Sure, here is"
SMALL = {"steps": 8, "search_width": 24, "top_k": 32, "suffix": "x x x x", "batch_size": 7}


@pytest.fixture(scope="module")
def parts() -> tuple:
    tokenizer = make_tokenizer()
    model = make_model(len(tokenizer)).eval().requires_grad_(False)
    return Network(model), tokenizer, ChatFormat(tokenizer)


def gcg(parts: tuple, **fields: object) -> Gcg:
    return Gcg(*parts, GcgConfig.model_validate({**SMALL, **fields}))


def plain_loss(parts: tuple, prompt_ids: list[int]) -> float:
    network, _, chat = parts
    response = chat.response_ids(TARGET)
    ids = torch.tensor([prompt_ids + response])
    with torch.no_grad():
        logits = network.model(ids).logits[0, len(prompt_ids) - 1 : -1]
    return torch.nn.functional.cross_entropy(logits, torch.tensor(response)).item()


def test_the_loss_falls_and_the_last_prompt_reaches_the_lowest(parts: tuple) -> None:
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
    attack = gcg(parts)
    start = torch.tensor(attack._start(GOAL, parts[2].user_ids(GOAL)))
    assert attack._text(GOAL, start) == f"{GOAL} x x x x", "a suffix that begins a word keeps its space"
    found = attack.search(GOAL, TARGET, seed=1)
    assert len(set(found.losses)) > 4, "the suffix changes: its candidates survive the way through text"
    assert plain_loss(parts, parts[2].prompt_ids(found.prompts[-1])) == pytest.approx(min(found.losses), abs=1e-4)


def test_a_search_depends_on_its_seed_alone(parts: tuple) -> None:
    one = gcg(parts).search(GOAL, TARGET, seed=1)
    assert gcg(parts, batch_size=24).search(GOAL, TARGET, seed=1).prompts == one.prompts
    assert gcg(parts).search(GOAL, TARGET, seed=2).losses != one.losses


def test_scores_are_the_gradient_at_one_hot_tokens(parts: tuple) -> None:
    network, _, chat = parts
    attack = gcg(parts)
    goal_ids, response = chat.user_ids(GOAL), chat.response_ids(TARGET)
    suffix = torch.tensor(attack._start(GOAL, goal_ids))
    before, between = chat.segments()
    ids = torch.tensor([*before, *goal_ids, *suffix.tolist(), *between, *response])
    weight = network.embedding.weight
    hot = torch.nn.functional.one_hot(ids, len(weight)).float().requires_grad_(True)
    logits = network.model(inputs_embeds=(hot @ weight)[None]).logits[0, -len(response) - 1 : -1]
    loss = torch.nn.functional.cross_entropy(logits, torch.tensor(response))
    (gradient,) = torch.autograd.grad(loss, hot)
    low = len(before) + len(goal_ids)
    scores = attack._scores(goal_ids, suffix, response)
    allowed = printable_tokens(parts[1], len(weight))
    torch.testing.assert_close(scores[:, allowed], gradient[low : low + len(suffix)][:, allowed], atol=1e-5, rtol=1e-3)
    assert torch.isinf(scores[:, ~allowed]).all()


def test_candidates_exchange_as_many_tokens_as_asked_for_the_best_ones() -> None:
    suffix, scores = torch.arange(5), torch.rand(5, 40, generator=torch.Generator().manual_seed(0))
    config = GcgConfig(search_width=400, top_k=3, n_replace=2)
    found = propose(suffix, scores, config, torch.Generator().manual_seed(3))
    assert found.shape == (400, 5)
    changed = found != suffix
    assert int(changed.sum(dim=1).max()) == 2
    best = scores.topk(3, largest=False).indices
    for position in range(5):
        drawn = set(found[changed[:, position], position].tolist())
        assert drawn == set(best[position].tolist()) - {position}
    # Each position is as likely as another: 400 * 2 / 5 each, give or take six standard deviations.
    assert all(abs(int(count) - 160) < 60 for count in changed.sum(dim=0))


def test_special_and_unprintable_tokens_are_out(parts: tuple) -> None:
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


def test_the_embedding_attack_lowers_its_loss_and_leaves_the_template_alone(parts: tuple) -> None:
    network, _, chat = parts
    embeddings, losses = attack_embeddings(network, chat.encode(GOAL, TARGET), AttackConfig(steps=6, step_size=0.2))
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


def test_a_search_that_stops_at_every_step_gives_what_one_go_gives(parts: tuple) -> None:
    whole = gcg(parts, attempts=4).search(GOAL, TARGET, seed=1)
    attack = gcg(parts, attempts=4)
    search = attack.begin(GOAL, TARGET, seed=1)
    for step in range(SMALL["steps"]):
        assert search.steps == step
        # As it travels to another process, with an attack of its own.
        search = gcg(parts, attempts=4).advance(GOAL, TARGET, pickle.loads(pickle.dumps(search)), stop=lambda: True)
    assert search == whole
    assert attack.advance(GOAL, TARGET, search, stop=lambda: False) == whole, "a search that is done stays as it is"
