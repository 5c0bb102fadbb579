"""`dat bench attack`: the inner attack against the form in which it was published.

The published form (CAT, arXiv 2405.15589, its public code) looks embeddings up by a product with one-hot rows, makes
logits at every position and compares them with one-hot targets. Both forms here run on the same model and rows, and their
perturbations must agree before a time is reported.

Shapes: B rows, T positions, D width, V vocabulary.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import LlamaConfig

from dat_ray.bench.random_models import random_llama
from dat_ray.config.training import AttackConfig, LoraConfig, TrainingConfig
from dat_ray.errors import DatError
from dat_ray.models.adapters import attach_lora
from dat_ray.models.chat import Encoded
from dat_ray.models.loading import use_tensor_cores
from dat_ray.training.attack import mean_embedding_norm
from dat_ray.training.batches import HarmfulRow, collate
from dat_ray.training.cost import peak_bytes, peak_flops, update_passes
from dat_ray.training.network import Network
from dat_ray.training.objectives import row_means, token_logprobs
from dat_ray.training.terms import find_perturbation

# Of a chat template, before a user message and after it.
TEMPLATE_TOKENS = 4
# In half and single precision a sign step can turn where a gradient is all but zero.
MAX_SHARE_DIFFERENT = 0.02


@dataclass(frozen=True)
class Preset:
    """A model's shape and the rows of one batch.

    Attributes:
        layers, width, heads, hidden, vocabulary, tied, spread: of a Llama with random weights and their standard deviation;
            keys have a quarter of the heads.
        rank: of the adapter.
        rows: B.
        tokens: T; the prompt takes what the response leaves.
        response: tokens of a response.
        steps: of the attack.
        dtype: of the weights.
    """

    layers: int
    width: int
    heads: int
    hidden: int
    vocabulary: int
    tied: bool
    spread: float
    rank: int
    rows: int
    tokens: int
    response: int
    steps: int
    dtype: torch.dtype


PRESETS = {
    "cpu": Preset(2, 256, 4, 688, 32_000, True, 0.05, 8, 8, 128, 24, 3, torch.float32),
    # Llama-3.2-1B's shape with 128,256 tokens; batch, length and steps of DAT's table 3.
    "1b": Preset(16, 2048, 32, 8192, 128_256, True, 0.02, 8, 8, 128, 24, 20, torch.bfloat16),
}


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the options."""
    parser.add_argument("--preset", choices=tuple(PRESETS), default="cpu", help="cpu: seconds on two cores; 1b: for a GPU")
    parser.add_argument("--compile", action="store_true", help="our form with compiled layers (training.compile)")
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="timed runs of each form (default: %(default)s)")


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Runs the benchmark; see `bench_attack`."""
    return bench_attack(arguments.preset, arguments.repeats, arguments.compile)


def build(preset: Preset, device: torch.device, compile_backend: str | None = None) -> tuple[Network, list[HarmfulRow]]:
    """A random model with a LoRA, and random rows of unequal prompt lengths without token id 0, which the published
    form would drop from a response. As under a chat template, the tokens before the user message are the same in all rows."""
    config = LlamaConfig(
        vocab_size=preset.vocabulary,
        hidden_size=preset.width,
        intermediate_size=preset.hidden,
        num_hidden_layers=preset.layers,
        num_attention_heads=preset.heads,
        num_key_value_heads=max(preset.heads // 4, 1),
        tie_word_embeddings=preset.tied,
        initializer_range=preset.spread,
    )
    use_tensor_cores(preset.dtype)
    model = attach_lora(random_llama(config, preset.dtype, device), LoraConfig(rank=preset.rank), 0)
    opening = torch.randint(1, preset.vocabulary, (TEMPLATE_TOKENS,)).tolist()
    rows = []
    for row in range(preset.rows):
        prompt = preset.tokens - preset.response - row
        ids = opening + torch.randint(1, preset.vocabulary, (prompt + preset.response - len(opening),)).tolist()
        encoded = Encoded(ids, user_span=(len(opening), prompt - TEMPLATE_TOKENS), response_span=(prompt, len(ids)))
        rows.append(HarmfulRow(encoded, encoded))
    return Network(model, compile_backend=compile_backend), rows


def our_attack(network: Network, rows: list[HarmfulRow], cfg: AttackConfig, unit_norm: float) -> Tensor:
    """(B, T, D): training's attack on embeddings."""
    training = TrainingConfig(retain_rows=0, retain_weight=0.0, attack=cfg)
    return find_perturbation(network, rows, training, unit_norm).delta[0]


def published_attack(network: Network, rows: list[HarmfulRow], cfg: AttackConfig, unit_norm: float) -> Tensor:
    """(B, T, D): the published form with sign steps, sizes in units of `unit_norm`."""
    weight, device = network.embedding.weight.detach(), network.device
    V, length = len(weight), max(len(row.harmful.ids) for row in rows)
    ids = torch.zeros(len(rows), length, dtype=torch.int64, device=device)
    labels, attention = torch.full_like(ids, -100), torch.zeros_like(ids)
    for index, row in enumerate(rows):
        tokens = torch.tensor(row.harmful.ids, device=device)
        low, high = row.harmful.response_span
        ids[index, : len(tokens)], attention[index, : len(tokens)] = tokens, 1
        labels[index, low:high] = tokens[low:high]

    def one_hot(values: Tensor) -> Tensor:
        return F.one_hot(values.clamp(min=0), V).to(weight.dtype)

    with network.frozen():
        embeddings = (one_hot(ids) @ weight).detach()
        targets, counted = one_hot(labels)[:, 1:], labels[:, 1:] > 0
        where = ((labels <= 0) & (attention > 0))[..., None].float()
        delta = torch.zeros(*ids.shape, weight.shape[1], device=device, requires_grad=True)
        for _ in range(cfg.steps):
            shifted = (embeddings.float() + delta * where).to(weight.dtype)
            logits = network.model(inputs_embeds=shifted, attention_mask=attention, use_cache=False).logits
            loss = F.cross_entropy(logits[:, :-1][counted].float(), targets[counted].float())
            (gradient,) = torch.autograd.grad(loss, delta)
            with torch.no_grad():
                delta -= cfg.step_size * unit_norm * gradient.sign()
                if cfg.radius is not None:
                    norms = delta.norm(dim=-1, keepdim=True)
                    delta *= (cfg.radius * unit_norm / norms.clamp(min=1e-20)).clamp(max=1.0)
    return (delta * where).detach()


@torch.no_grad()
def mean_entropy(network: Network, rows: list[HarmfulRow], delta: Tensor) -> float:
    """Harmful cross-entropy under a perturbation (B, T, D), nats a token, mean over rows."""
    batch = collate([row.harmful for row in rows], share_prefix=False, device=network.device)
    with network.frozen():
        found = network.response_logits(batch, delta[None])
    return float(-row_means(token_logprobs(found.logits, found.targets), found.rows, len(rows)).mean().item())


def bench_attack(preset_name: str, repeats: int, compiled: bool = False) -> dict[str, Any]:
    """Times both forms, taking turns.

    Args:
        preset_name: a key of `PRESETS`.
        repeats: timed runs of each, after one that is not timed.
        compiled: ours runs compiled layers, on the same weights.

    Returns:
        Medians: rows per second of both, their ratio, model FLOP utilization and peak memory in bytes of ours and of the
        published form (null on a CPU, where one process holds both), the share of coordinates in which the perturbations
        differ, their mean cosine over positions after one step, and the harmful cross-entropy (nats a token) that each form
        reaches from what it starts with: in half precision signs turn where a gradient is nearly zero, every later step starts
        from there, and what counts in the end is how strong both are.

    Raises:
        DatError: the perturbations disagree.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    preset = PRESETS[preset_name]
    network, rows = build(preset, device, "inductor" if compiled else None)
    unit = mean_embedding_norm(network.embedding)
    cfg = AttackConfig(steps=preset.steps, step_size=0.01, step_rule="sign", unit="relative", radius=0.1, positions="prompt")

    def uncompiled(cfg: AttackConfig) -> Tensor:
        with torch.compiler.set_stance("force_eager"):
            return published_attack(network, rows, cfg, unit)

    forms: dict[str, Callable[[AttackConfig], Tensor]] = {
        "ours": lambda cfg: our_attack(network, rows, cfg, unit),
        "published": uncompiled,
    }
    found = {name: form(cfg) for name, form in forms.items()}
    first = {name: form(cfg.model_copy(update={"steps": 1})) for name, form in forms.items()}
    tolerance = 1e-3 * cfg.step_size * unit
    different = (found["ours"] - found["published"]).abs() > tolerance
    moved = found["published"] != 0
    share = different.sum().item() / max(int(moved.sum()), 1)
    cosine = F.cosine_similarity(first["ours"], first["published"], dim=-1)[moved.any(-1)].mean().item()
    reached = {name: mean_entropy(network, rows, delta) for name, delta in found.items()}
    reached["start"] = mean_entropy(network, rows, torch.zeros_like(found["ours"]))
    if preset.dtype == torch.float32 and share > MAX_SHARE_DIFFERENT:
        raise DatError(f"the perturbations of both forms differ in {share:.1%} of their coordinates: no time is reported")
    seconds: dict[str, list[float]] = {name: [] for name in forms}
    peaks: dict[str, int] = {}
    for _ in range(repeats):
        for name, form in forms.items():
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
            seconds[name].append(_timed(partial(form, cfg), device))
            peaks[name] = max(peaks.get(name, 0), peak_bytes(device))
    ours, published = (statistics.median(seconds[name]) for name in ("ours", "published"))
    peak = peak_flops(device)
    passes = update_passes(rows, [], TrainingConfig(retain_rows=0, retain_weight=0.0, attack=cfg))
    # Attack passes alone: `update_passes` counts the update's pair as well.
    pair = sum(len(row.harmful.ids) + len(row.refusal.ids) for row in rows)
    pair_head = sum(span[1] - span[0] for row in rows for span in (row.harmful.response_span, row.refusal.response_span))
    decoder, head = network.parameter_counts()
    flops = passes.flops(decoder, head) - 4.0 * (decoder * pair + head * pair_head)
    on_gpu = device.type == "cuda"
    layers = ", our layers compiled" if compiled else ""
    return {
        "bench": "attack",
        "device": torch.cuda.get_device_name(device) if on_gpu else f"cpu, {torch.get_num_threads()} threads",
        "shape": f"{preset_name}: {preset.layers} layers, width {preset.width}, vocabulary {preset.vocabulary}, "
        f"{preset.rows} rows of {preset.tokens} tokens, {preset.steps} steps, {str(preset.dtype).removeprefix('torch.')}{layers}",
        "rows_per_s": preset.rows / ours,
        "literal_rows_per_s": preset.rows / published,
        "ratio_to_literal": published / ours,
        "mfu": None if peak is None else flops / ours / peak,
        "peak_bytes": peaks["ours"] if on_gpu else None,
        "literal_peak_bytes": peaks["published"] if on_gpu else None,
        "share_different": share,
        "cosine_after_one_step": cosine,
        "harmful_ce": reached,
        "repeats": repeats,
    }


def _timed(form: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    form()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began
