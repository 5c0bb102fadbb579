"""8-bit layers against the format's definition and a literal product."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from dat_ray.models.fp8 import Fp8Linear, quantize_layers, to_8_bits

CPU = torch.device("cpu")


def e4m3_values() -> Tensor:
    """Every number of the format, from its definition: 4 bits of exponent with bias 7, 3 of mantissa; all ones is no number."""
    found = [0.0]
    for exponent, mantissa in itertools.product(range(16), range(8)):
        if (exponent, mantissa) == (15, 7):
            continue
        found.append(mantissa / 8 * 2.0**-6 if exponent == 0 else (1 + mantissa / 8) * 2.0 ** (exponent - 7))
    return torch.tensor(sorted({sign * value for sign in (1, -1) for value in found}), dtype=torch.float64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_entries_become_the_nearest_number_of_the_format(dtype: torch.dtype) -> None:
    rows = torch.randn(5, 40, generator=torch.Generator().manual_seed(3)).to(dtype) * torch.tensor(
        [[1e-4], [1], [3], [90], [700]]
    )
    rows = rows.to(dtype)
    rounded, scales = to_8_bits(rows)
    values = e4m3_values()
    assert values.max() == 448
    torch.testing.assert_close(scales[:, 0].double(), rows.double().abs().amax(1) / 448, rtol=1e-6, atol=0)
    wanted = rows.float() / scales
    distance = (wanted.double()[..., None] - values).abs()
    torch.testing.assert_close((rounded.double() - wanted.double()).abs(), distance.min(-1).values, rtol=0, atol=0)
    # The largest entry of each row is met, so that no range is left unused and nothing overflows to no number.
    assert (rounded.double().abs().amax(1) == 448).all()


def test_by_hand() -> None:
    rounded, scales = to_8_bits(torch.tensor([[448.0, 1.0, 0.3, -0.01], [0.0, 0.0, 0.0, 0.0]]))
    # 0.3 lies between 0.28125 and 0.3125; 0.01 between 5/512 and 6/512, below the smallest normal number, 1/64.
    assert rounded[0].tolist() == [448.0, 1.0, 0.3125, -5 / 512]
    assert scales[0].item() == 1.0
    assert rounded[1].tolist() == [0.0] * 4, "a row of zeros stays one"


def layer(inputs: int, outputs: int, bias: bool, dtype: torch.dtype) -> nn.Linear:
    torch.manual_seed(1)
    made = nn.Linear(inputs, outputs, bias=bias)
    with torch.no_grad():
        made.weight[0] *= 30  # a large output takes nothing from the others
    return made.to(dtype)


@torch.no_grad()
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_layer_is_the_product_of_what_was_rounded(dtype: torch.dtype, bias: bool) -> None:
    plain = layer(96, 64, bias, dtype)
    eight = Fp8Linear(plain, CPU)
    states = (torch.randn(2, 7, 96, generator=torch.Generator().manual_seed(2)) * torch.arange(1, 8)[:, None]).to(dtype)
    out = eight(states)
    assert out.shape == (2, 7, 64)
    assert out.dtype == dtype

    def rounded(rows: Tensor) -> Tensor:
        scales = rows.double().abs().amax(1, keepdim=True) / 448
        return (rows.double() / scales).to(torch.float8_e4m3fn).double() * scales

    literal = rounded(states.flatten(0, 1)) @ rounded(plain.weight).T
    literal = literal if plain.bias is None else literal + plain.bias.double()
    # bfloat16 has 8 bits of mantissa.
    torch.testing.assert_close(out.flatten(0, 1).double(), literal, rtol=2**-7, atol=2**-7)
    exact = states.double() @ plain.weight.double().T + (0 if plain.bias is None else plain.bias.double())
    for rows in (slice(0, 1), slice(1, None)):  # the large output, and those beside it
        assert ((out - exact)[..., rows].norm() / exact[..., rows].norm()) < 0.05


@torch.no_grad()
def test_a_row_does_not_depend_on_its_batch_mates() -> None:
    eight = Fp8Linear(layer(32, 48, True, torch.bfloat16), CPU)
    states = torch.randn(9, 32).bfloat16() * torch.logspace(-3, 3, 9)[:, None].bfloat16()
    together = eight(states)
    assert all(torch.equal(eight(states[i : i + 1])[0], together[i]) for i in range(9))


@torch.no_grad()
@pytest.mark.slow
def test_a_compiled_layer_is_one_graph_and_gives_the_same() -> None:
    eight = Fp8Linear(layer(32, 48, False, torch.bfloat16), CPU)
    compiled = torch.compile(eight, backend="aot_eager", fullgraph=True, dynamic=True)
    for rows in (3, 8):
        states = torch.randn(rows, 32).bfloat16()
        assert torch.equal(compiled(states), eight(states))


@torch.no_grad()
def test_only_layers_of_sizes_that_a_gpu_takes_are_replaced() -> None:
    torch.manual_seed(0)
    # Keys and values of 8 outputs are no multiple of 16.
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=1
    )
    model = LlamaForCausalLM(config).eval()
    before = model(torch.arange(6)[None]).logits
    done = quantize_layers(model.model.layers, CPU)
    small, norms = 2 * 32 * 8, 2 * 32
    eight = 2 * 32 * 32 + 3 * 32 * 48
    assert (done.layers, done.share) == (2 * (7 - 2), eight / (eight + small + norms))
    block = model.model.layers[0]
    kinds = {name: type(module).__name__ for name, module in block.named_modules() if name.endswith("_proj")}
    assert {name.split(".")[-1] for name, kind in kinds.items() if kind == "Linear"} == {"k_proj", "v_proj"}
    assert type(model.lm_head) is nn.Linear
    assert model.model.embed_tokens.weight.dtype == torch.float32
    after = model(torch.arange(6)[None]).logits
    assert 0 < (after - before).norm() / before.norm() < 0.1
    # A second time there is nothing left to do.
    assert quantize_layers(model.model.layers, CPU).layers == 0
