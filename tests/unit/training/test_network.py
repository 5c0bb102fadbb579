"""The two savings of `Network` change nothing: neither the logits nor any gradient."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GraniteConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    Phi3Config,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from dat_ray.config.training import LoraConfig, TrainingConfig
from dat_ray.errors import DatError
from dat_ray.models.adapters import attach_lora
from dat_ray.models.architectures import attention_cap
from dat_ray.models.chat import Encoded
from dat_ray.training.batches import HarmfulRow, collate
from dat_ray.training.network import Network
from dat_ray.training.terms import find_perturbation
from tests.unit.training.literal_update import literal_attack_objective

MakeNetwork = Callable[..., Network]


def test_logits_are_those_of_the_whole_model(make_network: MakeNetwork, harmful_rows: list[HarmfulRow]) -> None:
    network = make_network(dtype=torch.float64)
    rows = [row.harmful for row in harmful_rows]
    batch = collate(rows, share_prefix=True)
    assert batch.shared == 4
    found = network.response_logits(batch)
    expected, targets = [], []
    for row in rows:
        low, high = row.response_span
        expected.append(network.model(input_ids=torch.tensor([row.ids])).logits[0, low - 1 : high - 1])
        targets += row.ids[low:high]
    assert torch.allclose(found.logits, torch.cat(expected), atol=1e-12)
    assert found.targets.tolist() == targets
    assert 0 in targets
    assert found.rows.tolist() == [i for i, row in enumerate(rows) for _ in range(*row.response_span)]


def test_the_shared_prefix_gives_the_same_logits_and_gradients(make_network: MakeNetwork, harmful_rows: list[HarmfulRow]) -> None:
    network = make_network(dtype=torch.float64)
    rows = [row.harmful for row in harmful_rows]
    results = []
    for share in (True, False):
        batch = collate(rows, share_prefix=share)
        delta = torch.zeros(*batch.ids.shape, 32, requires_grad=True)
        moved = delta + 0.1 * batch.user[..., None]
        logits = network.response_logits(batch, moved[None]).logits
        network.model.zero_grad(set_to_none=True)
        logits.square().sum().backward()
        assert delta.grad is not None
        grads = [p.grad.clone() for p in network.trainable().values() if p.grad is not None]
        assert len(grads) == len(network.trainable())
        results.append([logits.detach(), delta.grad * batch.user[..., None], *grads])
    for shared, whole in zip(*results, strict=True):
        assert whole.abs().max() > 0
        # The gradient with respect to delta is kept in float32.
        assert torch.allclose(shared, whole, rtol=1e-5, atol=1e-5 * whole.abs().max().item())


def test_the_prefix_runs_once_for_all_rows(make_network: MakeNetwork, harmful_rows: list[HarmfulRow]) -> None:
    network = make_network()
    batch = collate([row.harmful for row in harmful_rows], share_prefix=True)
    tokens: list[int] = []
    network.decoder.layers[0].mlp.register_forward_hook(lambda _m, args, _o: tokens.append(args[0].shape[:2].numel()))
    network.response_logits(batch)
    assert tokens == [4, len(batch.ids) * (batch.ids.shape[1] - 4)]


def test_the_head_sees_response_positions_only(make_network: MakeNetwork, harmful_rows: list[HarmfulRow]) -> None:
    network = make_network()
    batch = collate([row.harmful for row in harmful_rows], share_prefix=True)
    seen: list[int] = []
    network.head.register_forward_hook(lambda _m, args, _o: seen.append(args[0].shape[:-1].numel()))
    network.response_logits(batch)
    assert seen == [int(batch.response.sum())]


def test_a_row_does_not_depend_on_its_padding(make_network: MakeNetwork, encode: Callable[..., Encoded]) -> None:
    network = make_network(dtype=torch.float64)
    short, long = encode([8, 9], [0, 11]), encode(list(range(10, 40)), list(range(20)))
    alone = network.response_logits(collate([short], share_prefix=True)).logits
    together = network.response_logits(collate([short, long], share_prefix=True))
    assert torch.allclose(alone, together.logits[together.rows == 0], atol=1e-12)


SHAPE = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.3,
    "pad_token_id": 0,
}
LLAMA_3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
# A window of 4 tokens, and rows of up to 15.
LAYER_TYPES = ["sliding_attention", "full_attention"]
FAMILIES: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**SHAPE),
    "llama-3 rope": LlamaConfig(**SHAPE, rope_parameters=LLAMA_3_ROPE),
    "mistral with a window": MistralConfig(**SHAPE, sliding_window=4),
    "qwen2": Qwen2Config(**SHAPE),
    "qwen2 with a window": Qwen2Config(**SHAPE, use_sliding_window=True, sliding_window=4, layer_types=LAYER_TYPES),
    "qwen3": Qwen3Config(**SHAPE, head_dim=8),
    "gemma": GemmaConfig(**SHAPE, head_dim=8),
    "gemma-2 without a cap on its logits": Gemma2Config(
        **SHAPE,
        head_dim=8,
        query_pre_attn_scalar=8,
        sliding_window=4,
        layer_types=LAYER_TYPES,
        attn_logit_softcapping=0.5,
        final_logit_softcapping=None,
    ),
    "gemma-3": Gemma3TextConfig(**SHAPE, head_dim=8, sliding_window=4, layer_types=LAYER_TYPES),
    "phi-3": Phi3Config(**SHAPE, sliding_window=4),
}


def network_of(config: PreTrainedConfig, dtype: torch.dtype = torch.float64) -> Network:
    """A random model with an adapter off its start, with the attention that `load_causal_lm` gives it."""
    torch.manual_seed(0)
    eager = {"attn_implementation": "eager"} if attention_cap(config) is not None else {}
    model = attach_lora(AutoModelForCausalLM.from_config(copy.deepcopy(config), **eager), LoraConfig(rank=4, alpha=8), 0)
    network = Network(model.to(dtype).eval())
    generator = torch.Generator().manual_seed(1)
    for parameter in network.trainable().values():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator, dtype=dtype)
    return network


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_gives_the_logits_and_the_attack_of_transformers(
    family: str, make_config: Callable[..., TrainingConfig], harmful_rows: list[HarmfulRow]
) -> None:
    config, rows = FAMILIES[family], [row.harmful for row in harmful_rows]
    # Eager attention takes its softmax in float32, in which float64's mask overflows.
    dtype, close = (torch.float64, 1e-6) if attention_cap(config) is None else (torch.float32, 1e-4)
    network = network_of(config, dtype)
    found = network.response_logits(collate(rows, share_prefix=True)).logits
    expected = [
        network.model(input_ids=torch.tensor([row.ids]), use_cache=False).logits[0, low - 1 : high - 1]
        for row in rows
        for low, high in [row.response_span]
    ]
    assert torch.allclose(found, torch.cat(expected), atol=close)
    # Embeddings and a layer's output, one step down the plain gradient, each row by itself and without padding.
    attack = {"steps": 1, "step_size": 1.0, "step_rule": "raw", "unit": "absolute", "layers": ["embedding", 0]}
    cfg = make_config(attack=attack)
    delta = find_perturbation(network, harmful_rows, cfg, 1.0).delta
    for i, row in enumerate(harmful_rows):
        low, high = row.harmful.user_span
        zero = torch.zeros(2, row.harmful.response_span[0], 32, dtype=dtype, requires_grad=True)
        (gradient,) = torch.autograd.grad(literal_attack_objective(network.model, row, zero, cfg), zero)
        wanted = -gradient[:, low:high]
        assert (delta[:, i, low:high] - wanted).norm() <= 10 * close * wanted.norm()
        assert wanted.norm() > 1e-3


@pytest.mark.parametrize(
    ("config", "field"),
    [
        (GraniteConfig(**SHAPE, logits_scaling=8.0), "logits_scaling = 8.0"),
        (CohereConfig(**SHAPE), "logit_scale = 0.0625"),
        (Gemma2Config(**SHAPE, head_dim=8, attn_logit_softcapping=None), "final_logit_softcapping = 30.0"),
        (Gemma3TextConfig(**SHAPE, head_dim=8, final_logit_softcapping=20.0), "final_logit_softcapping = 20.0"),
    ],
    ids=["granite", "cohere", "gemma-2", "gemma-3"],
)
def test_a_model_that_changes_its_logits_is_refused(config: PreTrainedConfig, field: str) -> None:
    with pytest.raises(DatError, match=rf"ForCausalLM changes its logits after the output head \({field}\)"):
        network_of(config)


def test_a_cap_that_the_probe_cannot_see_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small weights make small logits, which a cap of 30 leaves alone; trained ones reach it."""
    monkeypatch.setattr("dat_ray.training.network.not_trainable", lambda config: None)
    config = Gemma2Config(**{**SHAPE, "initializer_range": 0.02}, head_dim=8, attn_logit_softcapping=None)
    network = network_of(config, torch.float32)
    network.head.weight.data *= 300
    ids = torch.tensor([[3, 1, 4, 1, 5]])
    whole = network.model(input_ids=ids, use_cache=False).logits
    assert (network.head(network.decoder(input_ids=ids).last_hidden_state) - whole).abs().max() > 1.0


def test_a_scale_that_no_field_names_is_found_by_the_probe() -> None:
    class Halved(LlamaForCausalLM):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            out = super().forward(*args, **kwargs)
            out.logits = out.logits / 2
            return out

    with pytest.raises(DatError, match="Halved changes its logits after the output head"):
        Network(attach_lora(Halved(LlamaConfig(**SHAPE)), LoraConfig(rank=2), 0))


def test_a_cap_on_attention_is_refused_where_it_would_be_left_out() -> None:
    model = AutoModelForCausalLM.from_config(copy.deepcopy(FAMILIES["gemma-2 without a cap on its logits"]))
    with pytest.raises(DatError, match="Gemma2ForCausalLM bounds its attention logits, which sdpa leaves out"):
        Network(attach_lora(model, LoraConfig(rank=2), 0))
