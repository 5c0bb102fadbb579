from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

from dat_ray.diffusion.backbone import (
    Packing,
    bidirectional_mask,
    hidden_states,
    output_head,
    pack_attention,
    packed_states,
    pad_rows,
)


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


CONFIGS = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
}


@torch.no_grad()
@pytest.mark.parametrize("family", CONFIGS)
def test_packed_rows_equal_the_same_rows_alone(family: str) -> None:
    config, cls = CONFIGS[family]
    torch.manual_seed(0)
    shape = {"vocab_size": 40, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "initializer_range": 0.3}
    packed = cls(config(num_attention_heads=4, num_key_value_heads=2, head_dim=8, **shape)).eval()
    lengths = [5, 3, 3, 1, 7, 3]
    ids = torch.randint(40, (sum(lengths),))
    alone = [hidden_states(packed, row[None], torch.ones(1, len(row), dtype=torch.bool))[0] for row in ids.split(lengths)]
    pack_attention(packed)
    together = packed_states(packed, ids, Packing.of(lengths))
    assert torch.allclose(together, torch.cat(alone), atol=1e-5)
    # A model that can take packed rows still takes padded and causal ones.
    rows, valid = pad_rows([row.tolist() for row in ids.split(lengths)], 9)
    assert torch.allclose(hidden_states(packed, rows, valid)[valid], torch.cat(alone), atol=1e-5)
    causal = packed.model(ids[None, :5]).last_hidden_state[0]
    assert torch.allclose(packed.model(ids[None, :4]).last_hidden_state[0], causal[:4], atol=1e-5)


def test_packing_groups_neighbors_of_one_length() -> None:
    packing = Packing.of([4, 2, 2, 4])
    assert packing.groups == ((0, 1, 4), (4, 2, 2), (8, 1, 4))
    assert packing.positions.tolist() == [[0, 1, 2, 3, 0, 1, 0, 1, 0, 1, 2, 3]]
    assert (packing.bounds.tolist(), packing.longest) == ([0, 4, 6, 8, 12], 4)
