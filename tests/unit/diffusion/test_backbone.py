from __future__ import annotations

import pytest
import torch

from dat_ray.diffusion.backbone import bidirectional_mask, hidden_states, output_head, pad_rows


def test_padding_is_on_the_right_and_marked() -> None:
    ids, valid = pad_rows([[5, 6], [7]], 9)
    assert ids.tolist() == [[5, 6], [7, 9]]
    assert valid.tolist() == [[True, True], [True, False]]
    assert bidirectional_mask(valid)[1, 0].tolist() == [[True, False], [True, False]]


@torch.no_grad()
def test_a_later_token_changes_earlier_states_but_not_in_the_causal_model(model) -> None:
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    changed = torch.tensor([[5, 6, 7, 8, 20]])
    valid = torch.ones_like(ids, dtype=torch.bool)
    here, there = hidden_states(model, ids, valid), hidden_states(model, changed, valid)
    assert (here - there).abs().amax(-1).min() > 1e-3
    causal, causal_changed = model.model(ids).last_hidden_state, model.model(changed).last_hidden_state
    assert torch.equal(causal[:, :4], causal_changed[:, :4])


@torch.no_grad()
def test_every_position_attends_to_every_other(model) -> None:
    # With the causal mask put back by hand the two forms agree, so nothing but the mask differs.
    ids = torch.tensor([[5, 6, 7, 8]])
    causal = torch.ones(4, 4, dtype=torch.bool).tril()[None, None]
    by_hand = model.model(input_ids=ids, attention_mask=causal, use_cache=False).last_hidden_state
    assert torch.allclose(by_hand, model.model(ids).last_hidden_state, atol=1e-5)
    full = model.model(input_ids=ids, attention_mask=torch.ones_like(causal), use_cache=False).last_hidden_state
    assert torch.allclose(full, hidden_states(model, ids, torch.ones_like(ids, dtype=torch.bool)), atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("fill", [0, 3, 30])
def test_padding_is_never_attended(model, fill: int) -> None:
    ids, valid = pad_rows([[5, 6, 7], [9, 8, 7, 6, 5, 4, 10, 11]], fill)
    alone = hidden_states(model, torch.tensor([[5, 6, 7]]), torch.ones(1, 3, dtype=torch.bool))
    assert torch.allclose(hidden_states(model, ids, valid)[0, :3], alone[0], atol=1e-5)


def test_the_head_gives_a_logit_for_every_id(model) -> None:
    assert output_head(model)(torch.zeros(2, 32)).shape == (2, 48)
