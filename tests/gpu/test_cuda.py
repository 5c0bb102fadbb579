"""What only a GPU runs: packed attention in 16 bits, and the sampler, training and adaptation there as on a CPU."""

from __future__ import annotations

import inspect
import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from dat_ray.config.adapt import AdaptConfig
from dat_ray.config.training import AttackConfig, LoraConfig, RetainConfig, TrainingConfig
from dat_ray.diffusion.backbone import Packing, hidden_states, output_head, pack_attention, packed_states, pad_rows
from dat_ray.diffusion.canvas import Canvas, SamplerSpec
from dat_ray.diffusion.law import Law
from dat_ray.diffusion.likelihood import MaskedModel, log_likelihood
from dat_ray.diffusion.pairs import EncodedPair
from dat_ray.diffusion.sampler import TorchDenoiser
from dat_ray.errors import DatError
from dat_ray.models.adapters import attach_lora
from dat_ray.models.chat import Encoded
from dat_ray.models.fp8 import CAPABILITY, Fp8Linear, quantize_layers
from dat_ray.training.adaptation import PairSplit, adapt, save_adapted
from dat_ray.training.batches import HarmfulRow
from dat_ray.training.network import Network
from dat_ray.training.step import FineTuning, UpdateRows, make_trainer
from dat_ray.training.terms import find_perturbation

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no CUDA GPU here")]

MASK, VOCABULARY = 3, 300
SPEC = SamplerSpec(MASK, 1, (0, 1, 2, 3), "chat", before=(4,))


def model_of(device: str, dtype: torch.dtype = torch.float32, key_heads: int = 4) -> LlamaForCausalLM:
    """The same weights wherever they are asked for."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=key_heads,
        initializer_range=0.2,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config).eval().to(dtype).to(device)


def ids_of(length: int, seed: int) -> list[int]:
    return torch.randint(4, VOCABULARY, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


@torch.no_grad()
@pytest.mark.parametrize("key_heads", [4, 2])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_packed_attention_in_16_bits_is_as_near_the_truth_as_the_padded_one(dtype: torch.dtype, key_heads: int) -> None:
    from torch.nn.attention.varlen import varlen_attn

    if key_heads < 4 and "enable_gqa" not in inspect.signature(varlen_attn).parameters:
        pytest.skip("this PyTorch is older than the supported ones: its varlen_attn has no grouped heads")
    rows = [ids_of(length, length) for length in (1, 5, 5, 17, 130)]
    truth_model, model = model_of("cpu", torch.float64, key_heads), model_of("cuda", dtype, key_heads)
    ids, valid = pad_rows(rows, 0)
    truth = hidden_states(truth_model, ids, valid)[valid]
    padded = hidden_states(model, ids.cuda(), valid.cuda())[valid.cuda()].cpu().double()
    pack_attention(model)
    packing = Packing.of([len(row) for row in rows], "cuda")
    packed = packed_states(model, torch.tensor([i for row in rows for i in row], device="cuda"), packing).cpu().double()
    assert (packed - truth).norm() / truth.norm() < 1.5 * (padded - truth).norm() / truth.norm()
    # Each row by itself gives the same: no row sees another.
    for start, row in zip([0, 1, 6, 11, 28], rows, strict=True):
        alone = packed_states(model, torch.tensor(row, device="cuda"), Packing.of([len(row)], "cuda")).cpu().double()
        assert (alone - packed[start : start + len(row)]).norm() / alone.norm() < 2e-2


def canvases() -> list[Canvas]:
    """Rows of unequal lengths."""
    made = []
    for row, (masks, response) in enumerate([(3, 4), (9, 2), (6, 11), (1, 1), (12, 7), (6, 11)]):
        total = 1 + masks + response
        made.append(Canvas((4, *(MASK,) * masks, *ids_of(response, row)), (1, 1 + masks), (1 + masks, total)))
    return made


@pytest.mark.parametrize(
    "law", [Law(6), Law(6, 0.7), Law(6, 0.7, "random", guidance=1.0), Law(6, threshold=0.1), Law(9, refine="low_confidence")]
)
def test_a_gpu_writes_the_rows_of_a_cpu(law: Law) -> None:
    rows = canvases()
    seeds = list(range(100, 100 + len(rows)))
    on_cpu = TorchDenoiser(model_of("cpu"), SPEC, law, 4).fill(rows, seeds)
    on_gpu = TorchDenoiser(model_of("cuda"), SPEC, law, 3, steps_per_call=3).fill(rows[::-1], seeds[::-1])[::-1]
    assert [(tokens, nfe) for tokens, _, nfe in on_gpu] == [(tokens, nfe) for tokens, _, nfe in on_cpu]
    assert [logprob for _, logprob, _ in on_gpu] == pytest.approx([logprob for _, logprob, _ in on_cpu], abs=1e-3)


@pytest.mark.slow
def test_compiled_layers_write_the_rows_of_plain_ones() -> None:
    """In 16 bits, where packed rows are compiled with varlen attention; ragged lengths and changing batches."""
    rows, seeds, law = canvases(), list(range(6)), Law(6, 0.7)
    plain = TorchDenoiser(model_of("cuda", torch.bfloat16), SPEC, law, 3).fill(rows, seeds)
    compiled = TorchDenoiser(model_of("cuda", torch.bfloat16), SPEC, law, 3, compiled=True).fill(rows, seeds)
    # Fused operations round less often: a token on the edge may turn, and its row with it.
    assert sum(a[0] == b[0] for a, b in zip(plain, compiled, strict=True)) >= 4


HAS_FP8 = torch.cuda.is_available() and torch.cuda.get_device_capability() >= CAPABILITY


@torch.no_grad()
@pytest.mark.skipif(not HAS_FP8, reason="this GPU has no 8-bit products: NVIDIA's Ada, Hopper and newer have them")
@pytest.mark.parametrize("tokens", [1, 7, 300])
def test_8_bit_products_are_those_of_the_reference_on_a_cpu(tokens: int) -> None:
    torch.manual_seed(0)
    plain = nn.Linear(4096, 1040).to(torch.bfloat16)
    states = torch.randn(tokens, 4096).to(torch.bfloat16)
    on_cpu = Fp8Linear(plain, torch.device("cpu"))(states)
    on_gpu = Fp8Linear(plain, torch.device("cuda"))(states.cuda()).cpu()
    # Tensor cores sum in somewhat less than float32, and both round to 8 bits of mantissa.
    torch.testing.assert_close(on_gpu, on_cpu, rtol=2e-2, atol=2e-2)


@pytest.mark.skipif(not HAS_FP8, reason="this GPU has no 8-bit products: NVIDIA's Ada, Hopper and newer have them")
def test_8_bit_layers_write_each_row_as_it_would_be_written_alone() -> None:
    rows, seeds, law = canvases(), list(range(6)), Law(6)
    model = model_of("cuda", torch.bfloat16)
    assert quantize_layers(model.model.layers, torch.device("cuda")).layers == 14
    denoiser = TorchDenoiser(model, SPEC, law, 6)
    together = denoiser.fill(rows, seeds)
    alone = [denoiser.fill([row], [seed])[0] for row, seed in zip(rows, seeds, strict=True)]
    # Attention and norms of a batch may round otherwise: a token on the edge may turn, and its row with it.
    assert sum(a[0] == b[0] for a, b in zip(together, alone, strict=True)) >= 4


def test_likelihood_is_that_of_a_cpu() -> None:
    rows = [ids_of(12, 7), ids_of(20, 8)]
    written = [Canvas(tuple(row), (1, 6), (6, len(row))) for row in rows]

    def bound(device: str) -> list[float]:
        model = model_of(device)

        def states(batch):
            ids, valid = pad_rows([list(row) for row in batch], MASK, device)
            return hidden_states(model, ids, valid)[valid]

        return [one.value for one in log_likelihood(MaskedModel(MASK, 1, states, output_head(model), 4, 64), written, [1, 2], 4)]

    assert bound("cuda") == pytest.approx(bound("cpu"), abs=1e-3)


def training_rows() -> tuple[list[HarmfulRow], list[Encoded]]:
    def encode(prompt: list[int], response: list[int]) -> Encoded:
        ids = [1, 2, *prompt, 5, *response]
        return Encoded(ids, (2, 2 + len(prompt)), (len(ids) - len(response), len(ids)))

    harmful = [
        HarmfulRow(encode(ids_of(n, n), [*ids_of(4, 50 + n), 0]), encode(ids_of(n, n), ids_of(3, 70 + n))) for n in (5, 9, 3)
    ]
    return harmful, [encode(ids_of(n, 90 + n), ids_of(6, n)) for n in (4, 8)]


CONFIG = TrainingConfig(
    learning_rate=1e-2,
    harmful_rows=3,
    retain_rows=2,
    retain=RetainConfig(path="unused"),
    attack=AttackConfig(steps=4, step_size=0.05, step_rule="l2_normalized"),
)


def updates(device: str, dtype: torch.dtype = torch.float32, cfg: TrainingConfig = CONFIG, **options: Any) -> list[dict]:
    torch.set_float32_matmul_precision("highest")
    model = attach_lora(model_of(device, dtype, 2), LoraConfig(rank=4, dropout=0.0), 0)
    network = Network(model, **options)
    harmful, retain = training_rows()
    rows = UpdateRows(harmful, retain, len(harmful), sum(b - a for a, b in (row.response_span for row in retain)))
    objective, trainer = FineTuning(network, cfg, lambda _: rows), make_trainer(network, cfg, 10)
    return [objective.update(trainer, update) for update in range(3)]


def assert_same(found: list[dict], wanted: list[dict]) -> None:
    for one, other in zip(found, wanted, strict=True):
        for term in ("loss", "away", "toward", "retain_kl", "gradient_norm"):
            assert one[term] == pytest.approx(other[term], rel=2e-3, abs=2e-3), (one["update"], term)
        assert one["attack_ce"] == pytest.approx(other["attack_ce"], rel=2e-3)
        assert one["attack_norm"] == pytest.approx(other["attack_norm"], rel=2e-3)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"cuda_graph": False},
        {"attack": {"steps": 4, "step_size": 0.05, "step_rule": "adam", "positions": "user", "iterate": "best"}},
        {"attack": {"steps": 4, "step_size": 0.05, "step_rule": "l2_normalized", "objective": "joint", "positions": "prompt"}},
        {"attack": {"steps": 4, "step_size": 0.05, "unit": "absolute", "layers": ["embedding", 1], "radius": 0.1}},
        {"away": "ipo"},
    ],
    ids=str,
)
def test_updates_are_those_of_a_cpu(changes: dict) -> None:
    cfg = TrainingConfig.model_validate({**CONFIG.model_dump(), **changes})
    assert_same(updates("cuda", cfg=cfg), updates("cpu", cfg=cfg))


def test_checkpointed_updates_are_those_of_a_cpu() -> None:
    assert_same(updates("cuda", checkpointing=True), updates("cpu"))


@pytest.mark.slow
def test_compiled_updates_are_those_of_a_cpu() -> None:
    assert_same(updates("cuda", compile_backend="inductor"), updates("cpu"))


def test_a_recorded_attack_is_the_plain_one_and_faster_the_longer_it_runs() -> None:
    network = Network(attach_lora(model_of("cuda", torch.bfloat16, 2), LoraConfig(rank=4), 0))
    harmful, _ = training_rows()
    found, took = {}, {}
    for graph in (False, True):
        attack = AttackConfig(steps=60, step_size=0.02, step_rule="l2_normalized")
        cfg = TrainingConfig.model_validate({**CONFIG.model_dump(), "attack": attack, "cuda_graph": graph})
        find_perturbation(network, harmful, cfg, 1.0)
        torch.cuda.synchronize()
        began = time.perf_counter()
        found[graph] = find_perturbation(network, harmful, cfg, 1.0)
        torch.cuda.synchronize()
        took[graph] = time.perf_counter() - began
    assert found[True].harmful_ce == pytest.approx(found[False].harmful_ce, rel=0.02)
    cosine = torch.nn.functional.cosine_similarity(found[True].delta.flatten(), found[False].delta.flatten(), dim=0)
    assert cosine > 0.99
    assert took[True] < 0.6 * took[False]
    assert all(parameter.grad is None for parameter in network.model.parameters())


def test_what_cannot_be_recorded_says_so() -> None:
    """A model that asks the device something in every pass."""
    network = Network(attach_lora(model_of("cuda", key_heads=2), LoraConfig(rank=4), 0))
    network.decoder.layers[0].register_forward_hook(lambda module, inputs, output: output * float(output.isfinite().all()))
    with pytest.raises(DatError, match=r"cannot be recorded as a CUDA graph .* set training.cuda_graph to false"):
        find_perturbation(network, training_rows()[0], CONFIG, 1.0)
    torch.cuda.synchronize()
    assert find_perturbation(network, training_rows()[0], CONFIG.model_copy(update={"cuda_graph": False}), 1.0).harmful_ce


def test_updates_in_bfloat16_follow_those_in_float32() -> None:
    half, single = updates("cuda", torch.bfloat16), updates("cuda")
    assert half[0]["toward"] == pytest.approx(single[0]["toward"], rel=0.05)
    assert half[-1]["toward"] < half[0]["toward"]
    assert half[-1]["attack_ce"][-1] < half[-1]["attack_ce"][0]


def test_an_adaptation_has_the_curve_of_a_cpu(tmp_path: Path) -> None:
    letters = torch.randint(5, 60, (40,), generator=torch.Generator().manual_seed(3)).tolist()
    pairs = [EncodedPair((1, 4, a, a, a, 0, 2, a, a), (2, 5), (7, 9)) for a in letters]
    config = AdaptConfig(mask_token_id=MASK, steps=8, batch_size=4, rank=4, alpha=8, checkpoint_every=4)
    curves = []
    split = PairSplit(pairs[:30], pairs[30:])
    for device in ("cpu", "cuda"):
        adapt(model_of(device), split, config, tmp_path / device)
        lines = (tmp_path / device / "metrics.jsonl").read_text().splitlines()
        curves.append([json.loads(line)["loss"] for line in lines])
    assert curves[1] == pytest.approx(curves[0], rel=5e-3)
    # Stopped in the middle and continued, it ends where it would have.
    (tmp_path / "cuda" / "result.json").unlink()
    again = adapt(model_of("cuda"), split, config, tmp_path / "cuda")
    assert save_adapted(again.model, tmp_path / "cuda", "0").is_dir()
