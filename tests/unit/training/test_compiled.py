"""Compiled layers: the same update, and every layer of every pass is one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, PreTrainedModel

from dat_ray.config.training import LoraConfig, TrainingConfig
from dat_ray.models.adapters import attach_lora
from dat_ray.models.chat import Encoded
from dat_ray.training.batches import HarmfulRow, collate
from dat_ray.training.network import Network
from tests.unit.training.updates import run, whole

MakeNetwork = Callable[..., Network]
MakeConfig = Callable[..., TrainingConfig]


@pytest.mark.drill
def test_compiled_layers_give_the_same_update(
    make_network: MakeNetwork, make_config: MakeConfig, harmful_rows: list[HarmfulRow], retain_rows: list[Encoded]
) -> None:
    # The graphs are captured and run as they are: what a code generator makes of them is PyTorch's affair.
    cfg = make_config(attack={"steps": 1, "unit": "absolute", "layers": ["embedding", 0]})
    rows = whole(harmful_rows, retain_rows)
    loss, gradient = run(make_network(dtype=torch.float64), rows, cfg)
    graphs: list[int] = []

    def capture(graph: torch.fx.GraphModule, _inputs: object) -> Callable:
        graphs.append(len(graph.graph.nodes))
        return graph.forward

    backend: Any = capture  # a recipe names one; torch.compile takes a function too
    network = Network(make_network(dtype=torch.float64).model, compile_backend=backend)
    again, found = run(network, rows, cfg)
    torch.compiler.reset()
    assert graphs
    assert again == pytest.approx(loss, abs=1e-5)
    assert torch.allclose(found, gradient, atol=1e-4)


def alternating(layers: int) -> PreTrainedModel:
    """A model whose layers are of two kinds by turns."""
    torch.manual_seed(0)
    return Gemma3ForCausalLM(
        Gemma3TextConfig(
            vocab_size=61,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            sliding_window=4,
            layer_types=["sliding_attention", "full_attention"] * (layers // 2),
        )
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("many_forms", "changes"),
    [
        (False, {}),
        pytest.param(True, {"micro_rows": 1}, marks=pytest.mark.drill),
    ],
    ids=["rows under one template", "as many forms as one recipe asks for"],
)
def test_every_layer_of_every_pass_is_a_compiled_one(
    many_forms: bool,
    changes: dict[str, int],
    make_network: MakeNetwork,
    make_config: MakeConfig,
    harmful_rows: list[HarmfulRow],
    retain_rows: list[Encoded],
) -> None:
    """Past a limit of forms PyTorch runs a layer as it is, and says so in a worker's log alone."""
    layers, compiled, passes = 6, [0], [0]

    def capture(graph: torch.fx.GraphModule, _inputs: object) -> Callable:
        def call(*values: object) -> object:
            compiled[0] += 1
            return graph.forward(*values)

        return call

    forms = attach_lora(alternating(layers), LoraConfig(rank=2, dropout=0.1), 0)
    model = forms if many_forms else make_network(layers=layers).model
    backend: Any = capture
    network = Network(model, compile_backend=backend)
    network.decoder.register_forward_hook(lambda *_: passes.__setitem__(0, passes[0] + 1))
    network.model.train()
    assert collate(retain_rows, share_prefix=True).shared > 0
    for update in range(3):
        # Rows of other lengths in every update, as in a training.
        run(network, whole(harmful_rows[update : update + 3], retain_rows[update : update + 2]), make_config(**changes))
    torch.compiler.reset()
    assert compiled[0] == layers * passes[0] > 0
