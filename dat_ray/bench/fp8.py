"""`dat bench fp8`: the torch sampler with 8-bit layers against the same one without, its speed and its words.

What is compared: the prompts that both write at temperature 0, and both models on the same half-masked prompts (the plain one's),
where a token that turns changes nothing after it. The model has random weights of a known shape, which says how fast and little
about words, or is a recipe's sampler.

dat bench fp8 --json                           # the shipped sampler's words, on two CPU cores; FP8 is slow there
dat bench fp8 --shape llada-8b --json          # one GPU of 80 GB
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dat_ray.bench.in_turns import add_options, device_name, take_turns
from dat_ray.bench.sampler import SHAPES, Counting, build, canvases_of, peak_of
from dat_ray.bench.vllm_sampler import TARGETS
from dat_ray.config.loading import load_recipe
from dat_ray.diffusion.backbone import Packing, base_model, compile_layers
from dat_ray.diffusion.canvas import Canvas, SamplerSpec
from dat_ray.diffusion.law import Law
from dat_ray.diffusion.likelihood import masked_positions, written
from dat_ray.engines.base import InfillRequest
from dat_ray.engines.sampler_setup import SamplerSetup
from dat_ray.errors import InputError
from dat_ray.models.fp8 import lacks_products, quantize_layers
from dat_ray.models.loading import load_causal_lm
from dat_ray.models.samplers import resolve_sampler

# Masks of a prompt, as parts of it, at which the two are compared; the set of each is drawn.
LEVELS = 4
# Rows that are compared at once: their predictions over the vocabulary are held in float64.
ROWS_OF_A_PASS = 16


@dataclasses.dataclass(frozen=True)
class PredictionDrift:
    """How far one model's predictions are from another's, on the same masked tokens.

    Attributes:
        tokens: that were compared.
        same: share of them whose most probable token is the same.
        confidence: mean difference of the log-probabilities of the first model's most probable token, without sign, nats.
        confidence_95: 95% of the differences are at most this.
        divergence: mean Kullback-Leibler divergence from the first model to the second, nats.
    """

    tokens: int
    same: float
    confidence: float
    confidence_95: float
    divergence: float


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the options."""
    add_options(parser, "sampler", rows=24)
    parser.add_argument("--shape", choices=tuple(SHAPES), help="random weights of this shape instead of a recipe's sampler")
    parser.add_argument("--steps", type=int, default=None, metavar="T", help="denoising steps; default: the shape's or recipe's")


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Runs the benchmark; medians over repeats, ratios within each repeat.

    Raises:
        InputError: a recipe or model that cannot be had, or a GPU without 8-bit products.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if lacks_products(device):
        remedy = "has no 8-bit products: take one of NVIDIA's Ada, Hopper or newer"
        raise InputError("GPU", torch.cuda.get_device_name(device), remedy)
    torch.set_num_threads(arguments.threads)
    if arguments.shape:
        shape = dataclasses.replace(SHAPES[arguments.shape], rows=arguments.rows)
        models = [build(shape, device) for _ in range(2)]  # the same weights: they are drawn from one seed
        rows, seeds, spec = canvases_of(shape)
        law, title, batch = Law(arguments.steps or shape.steps), f"{arguments.shape}, random weights", shape.rows
    else:
        config = load_recipe(arguments.recipe, arguments.set).sampler.model_copy(update={"temperature": 0.0, "tempered": True})
        folder = resolve_sampler(config.model, revision=config.revision)
        setup, seeds = SamplerSetup.read(config, folder), list(range(arguments.rows))
        lengths = config.prompt_tokens
        requests = [InfillRequest(str(i), TARGETS[i % len(TARGETS)], lengths[i % len(lengths)], i) for i in seeds]
        rows, spec, law = setup.canvases(requests), setup.spec, setup.law
        law = dataclasses.replace(law, steps=arguments.steps or law.steps)
        models = [load_causal_lm(folder, config.dtype, "sampler.model") for _ in range(2)]
        title, batch = config.model, config.batch_size
    replaced = quantize_layers(base_model(models[1]).base_model.layers, device)
    dtype = next(models[0].parameters()).dtype
    for model in models:
        model.to(device)
        if device.type == "cuda":
            compile_layers(model)
    plain, eight = (Counting(model, spec, law, batch) for model in models)
    found = take_turns({"plain": lambda: plain.fill(rows, seeds), "fp8": lambda: eight.fill(rows, seeds)}, arguments.repeats)
    prompts = {form: [tokens for tokens, _, _ in results] for form, results in found.results.items()}
    flops = plain.flops() / (arguments.repeats + 1)
    peak, source = peak_of(device, dtype)
    pairs = [(a, b) for one, other in zip(prompts["plain"], prompts["fp8"], strict=True) for a, b in zip(one, other, strict=True)]
    steps = f"{law.steps} steps, temperature 0, {str(dtype).removeprefix('torch.')}"
    return {
        "bench": "fp8",
        "device": device_name(arguments.threads),
        "shape": f"{title}: {len(rows)} rows, {steps}; {replaced.layers} layers, {replaced.share:.0%} of their "
        f"parameters, in 8 bits{', compiled' * (device.type == 'cuda')}",
        "rows_per_s": len(rows) / found.median("fp8"),
        "literal_rows_per_s": len(rows) / found.median("plain"),
        "ratio_to_literal": found.ratio("plain", "fp8"),
        # Of the plain form's peak: with 8 bits a GPU's is twice that.
        "mfu": flops / found.median("fp8") / peak,
        "peak_bytes": None,
        "repeats": arguments.repeats,
        "seconds": found.seconds,
        "plain_mfu": flops / found.median("plain") / peak,
        "peak_flops": peak,
        "peak_flops_source": source,
        "rows_equal": sum(a == b for a, b in zip(prompts["plain"], prompts["fp8"], strict=True)),
        "tokens_equal": sum(a == b for a, b in pairs) / len(pairs),
        "drift": dataclasses.asdict(
            drift(plain, eight, [written(row, ids) for row, ids in zip(rows, prompts["plain"], strict=True)])
        ),
        "not_measured": None if device.type == "cuda" else "speed: it needs a GPU with 8-bit products",
    }


@torch.no_grad()
def drift(first: Counting, second: Counting, canvases: Sequence[Canvas]) -> PredictionDrift:
    """Compares two models on written prompts, each masked at LEVELS drawn sets of its tokens.

    Args:
        first, second: of one vocabulary and layout.
        canvases: with their prompts in place.
    """
    same, changes, divergences = [], [], []
    jobs = [
        (canvas, masked_positions(seed, level, LEVELS, canvas.prompt_span))
        for seed, canvas in enumerate(canvases)
        for level in range(LEVELS)
    ]
    for start in range(0, len(jobs), ROWS_OF_A_PASS):
        before, after = (_log_probabilities(one, jobs[start : start + ROWS_OF_A_PASS]) for one in (first, second))
        best = before.argmax(dim=1)
        same.append(best == after.argmax(dim=1))
        changes.append((before - after).gather(1, best[:, None])[:, 0].abs())
        divergences.append((before.exp() * (before - after)).nan_to_num(nan=0.0).sum(dim=1))  # 0 where both are impossible
    changed = torch.cat(changes)
    return PredictionDrift(
        len(changed),
        float(torch.cat(same).double().mean()),
        float(changed.mean()),
        float(changed.quantile(0.95)),
        float(torch.cat(divergences).mean()),
    )


def _log_probabilities(denoiser: Counting, rows: Sequence[tuple[Canvas, list[int]]]) -> Tensor:
    """(M, V) float64 of the masked places of all rows, row after row, with no token that the sampler bans."""
    spec: SamplerSpec = denoiser.spec
    ids: list[int] = []
    picked: list[int] = []
    for canvas, places in rows:
        start, hidden = len(ids), set(places)
        picked += [start + place - spec.shift for place in places]
        ids += [spec.mask_token_id if i in hidden else token for i, token in enumerate(canvas.ids)]
    packing = Packing.of([len(canvas.ids) for canvas, _ in rows], denoiser.device)
    states = denoiser.states(torch.tensor(ids, device=denoiser.device), packing)
    logits = denoiser.head(states[torch.tensor(picked, device=denoiser.device)]).double()
    logits[:, list(spec.banned_token_ids)] = -torch.inf
    return logits.log_softmax(dim=1)
