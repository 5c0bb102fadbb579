"""`dat bench sampler`: in-painting with random weights, against a literal form of the reference law.

Both forms run on the same model and rows in one process, taking turns; at temperature 0 their tokens are compared. The
threshold variant runs beside them: several tokens a step, by confidence.

dat bench sampler --json                                       # two CPU cores, a minute or two
dat bench sampler --shape llada-8b --json                      # one GPU of 80 GB
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig

from dat_ray.bench.memory import PeakMemory
from dat_ray.bench.random_models import random_llama
from dat_ray.diffusion.backbone import Packing, base_model, compile_layers
from dat_ray.diffusion.canvas import Canvas, SamplerSpec
from dat_ray.diffusion.canvas_rows import CanvasRow
from dat_ray.diffusion.law import Law
from dat_ray.diffusion.published_law import published_infill
from dat_ray.diffusion.sampler import TorchDenoiser
from dat_ray.errors import InputError
from dat_ray.training.cost import peak_flops


@dataclass(frozen=True)
class SamplerShape:
    """A model's shape and the rows that it writes.

    Attributes:
        layers, width, heads, hidden, vocabulary, tied, spread: of a Llama with random weights, and their standard deviation.
        masks, response: fewest and most tokens of a prompt and of a response, drawn for each row.
        steps: T.
        rows: of one run; all are under way at once.
        literal_batch: rows of a batch of the literal form, as many as its logits leave room for.
        dtype: of the weights.
    """

    layers: int
    width: int
    heads: int
    hidden: int
    vocabulary: int
    tied: bool
    spread: float
    masks: tuple[int, int]
    response: tuple[int, int]
    steps: int
    rows: int
    literal_batch: int
    dtype: torch.dtype


SHAPES = {
    # A small width under a real vocabulary; lengths of short prompts and affirmative openings.
    "cpu": SamplerShape(2, 128, 4, 344, 50_000, True, 0.1, (8, 24), (8, 24), 8, 32, 32, torch.float32),
    # GSAI-ML/LLaDA-8B-Base's public configuration; the published setting of the attack with responses of 128 tokens.
    "llada-8b": SamplerShape(32, 4096, 32, 12288, 126_464, False, 0.02, (64, 64), (128, 128), 64, 80, 16, torch.bfloat16),
}
MASK = 5  # any id will do: the weights are random
TOKENS_PER_STEP = 2.8  # of the threshold variant, as reported for LLaDA on GSM8K (method.md §5.4)


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the options."""
    parser.add_argument("--shape", choices=tuple(SHAPES), default="cpu", help="model and rows (default: %(default)s)")
    parser.add_argument("--device", default=None, help="cpu or cuda; default: cuda where there is one")
    parser.add_argument("--threads", type=int, default=None, metavar="N", help="of a CPU; default: PyTorch's")
    parser.add_argument("--steps", type=int, default=None, metavar="T", help="denoising steps; default: the shape's")
    parser.add_argument("--rows", type=int, default=None, metavar="N", help="prompts of a run; default: the shape's")
    parser.add_argument("--temperature", type=float, default=0.0, metavar="TAU", help="of the token draw (default: %(default)s)")
    parser.add_argument("--no-compile", action="store_true", help="on a GPU, our forms without sampler.compile")
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="timed runs of each form (default: %(default)s)")


class Counting(TorchDenoiser):
    """Counts the work: tokens and their attention through the layers, states through the head, forward passes."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        plain = self.head
        self.calls = self.tokens = self.pairs = self.head_rows = 0

        def head(states: Tensor) -> Tensor:
            self.head_rows += len(states)
            return plain(states)

        self.head = head

    def states(self, ids: Tensor, packing: Packing) -> Tensor:
        """See `TorchDenoiser`."""
        self.calls += 1
        self.tokens += len(ids)
        self.pairs += sum(rows * length**2 for _, rows, length in packing.groups)
        return super().states(ids, packing)

    def flops(self) -> float:
        """Useful floating-point operations so far: 2 a weight and token, and attention's two products."""
        config = base_model(self.model).config
        layers = sum(p.numel() for name, p in base_model(self.model).named_parameters() if ".layers." in name and p.dim() == 2)
        attention = 4.0 * config.hidden_size * config.num_hidden_layers * self.pairs
        return float(2.0 * layers * self.tokens + attention + 2.0 * config.hidden_size * config.vocab_size * self.head_rows)


def build(shape: SamplerShape, device: torch.device) -> nn.Module:
    """A model of the shape with random weights."""
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        intermediate_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        tie_word_embeddings=shape.tied,
        initializer_range=shape.spread,
        max_position_embeddings=4096,
    )
    return random_llama(config, shape.dtype, device)


def canvases_of(shape: SamplerShape) -> tuple[list[Canvas], list[int], SamplerSpec]:
    """Rows of random responses in the answer layout, their seeds, and the sampler's constants."""
    draw, rows = random.Random(0), []
    for _ in range(shape.rows):
        masks = draw.randint(*shape.masks)
        response = [draw.randrange(MASK + 1, shape.vocabulary) for _ in range(draw.randint(*shape.response))]
        total = masks + len(response)
        rows.append(Canvas((MASK,) * masks + tuple(response), (0, masks), (masks, total)))
    return rows, list(range(shape.rows)), SamplerSpec(MASK, 0, tuple(range(MASK + 1)), "answer")


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Runs the benchmark.

    Raises:
        InputError: a device that is not there.
    """
    name = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if name not in ("cpu", "cuda") or (name == "cuda" and not torch.cuda.is_available()):
        raise InputError("--device", name, "give cpu, or cuda on a machine with a GPU that PyTorch sees")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    shape = SHAPES[arguments.shape]
    for field in ("steps", "rows"):
        value = getattr(arguments, field)
        if value is not None:
            shape = dataclasses.replace(shape, **{field: value})
    compiled = name == "cuda" and not arguments.no_compile
    return bench_sampler(shape, arguments.shape, torch.device(name), arguments.temperature, arguments.repeats, compiled)


def bench_sampler(
    shape: SamplerShape, label: str, device: torch.device, temperature: float, repeats: int, compiled: bool = False
) -> dict[str, Any]:
    """Measures both forms and the threshold variant; medians over repeats. The literal form is never compiled."""
    model = build(shape, device)
    rows, seeds, spec = canvases_of(shape)
    law = Law(shape.steps, temperature)

    def sampler(law: Law) -> Counting:
        return Counting(model, spec, law, shape.rows)

    def literal() -> list[tuple[int, ...]]:
        with torch.compiler.set_stance("force_eager"):
            prompts: list[tuple[int, ...]] = published_infill(model, rows, seeds, spec, law, shape.literal_batch)
            return prompts

    if compiled:
        compile_layers(model)
    # Untimed: warms up, counts the work, and shows that both forms write the same.
    counted = sampler(law)
    written = [tokens for tokens, _, _ in counted.fill(rows, seeds)]
    published = literal()
    parallel = Law(shape.steps, temperature, threshold=_threshold(sampler(law), rows, seeds))
    counted_parallel = sampler(parallel)
    passes = sum(nfe for _, _, nfe in counted_parallel.fill(rows, seeds))
    runs: dict[str, Callable[[], object]] = {
        "ours": lambda: sampler(law).fill(rows, seeds),
        "literal": literal,
        "threshold": lambda: sampler(parallel).fill(rows, seeds),
    }
    seconds: dict[str, list[float]] = {key: [] for key in runs}
    busy: dict[str, list[float]] = {key: [] for key in runs}
    peaks: dict[str, list[int]] = {key: [] for key in runs}
    for _ in range(repeats):
        for key, run in runs.items():
            with PeakMemory(device) as memory:
                began, used = time.perf_counter(), time.process_time()
                run()
                _wait(device)
                seconds[key].append(time.perf_counter() - began)
                busy[key].append(time.process_time() - used)
            if memory.bytes is not None:
                peaks[key].append(memory.bytes)
    took = {key: statistics.median(values) for key, values in seconds.items()}
    ratios = [slow / fast for slow, fast in zip(seconds["literal"], seconds["ours"], strict=True)]
    peak, source = peak_of(device, shape.dtype)
    masks = sum(hi - lo for lo, hi in (canvas.prompt_span for canvas in rows))

    def form(key: str, work: Counting) -> dict[str, Any]:
        return {
            "rows_per_s": shape.rows / took[key],
            "prompt_tokens_per_s": masks / took[key],
            "model_calls": work.calls,
            "mfu": work.flops() / took[key] / peak,
            "peak_bytes": max(peaks[key], default=None),
        }

    ours = form("ours", counted)
    return {
        "bench": "sampler",
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads",
        "shape": f"{label}: {shape.layers} layers, width {shape.width}, vocabulary {shape.vocabulary}, {shape.rows} rows of "
        f"{_range(shape.masks)} masks and {_range(shape.response)} response tokens, {shape.steps} steps, temperature "
        f"{temperature:g}, {str(shape.dtype).removeprefix('torch.')}{', layers compiled' if compiled else ''}",
        "rows_per_s": ours["rows_per_s"],
        "literal_rows_per_s": shape.rows / took["literal"],
        "ratio_to_literal": statistics.median(ratios),
        "mfu": ours["mfu"],
        "peak_bytes": ours["peak_bytes"],
        "repeats": repeats,
        "prompt_tokens_per_s": ours["prompt_tokens_per_s"],
        "model_calls": ours["model_calls"],
        "peak_flops": peak,
        "peak_flops_source": source,
        "literal_peak_bytes": max(peaks["literal"], default=None),
        # What a busy machine disturbs less than the clock on the wall.
        "cpu_seconds": {key: statistics.median(values) for key, values in busy.items()},
        # Above temperature 0 the two forms draw other numbers.
        "rows_equal_to_literal": sum(a == b for a, b in zip(written, published, strict=True)) if temperature == 0 else None,
        "threshold": {
            "tokens_per_pass": masks / passes,
            **form("threshold", counted_parallel),
        },
        "not_measured": None if device.type == "cuda" else "a GPU: run --shape llada-8b on one",
    }


def _range(bounds: tuple[int, int]) -> str:
    return str(bounds[0]) if bounds[0] == bounds[1] else f"{bounds[0]} to {bounds[1]}"


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _threshold(sampler: Counting, rows: Sequence[Canvas], seeds: Sequence[int]) -> float:
    """A confidence that TOKENS_PER_STEP tokens of a row reach in its first step: random weights are sure of nothing, so
    that a fixed threshold would say nothing about speed."""
    law = Law(1)  # commits, and so scores, every mask
    begun = [CanvasRow.begin(canvas, seed, law) for canvas, seed in zip(rows, seeds, strict=True)]
    sampler.law = law
    sampler.advance(begun, 1)
    confidences = sorted((value for row in begun for value in row.logprobs), reverse=True)
    return math.exp(confidences[min(len(confidences), round(TOKENS_PER_STEP * len(rows))) - 1])


def peak_of(device: torch.device, dtype: torch.dtype) -> tuple[float, str]:
    """Operations per second that the device could do, and where the number is from: a data sheet, or a matrix product."""
    known = peak_flops(device) if dtype != torch.float32 else None
    if known is not None:
        return known, "data sheet, dense"
    size = 1536 if device.type == "cpu" else 8192
    a = torch.randn(size, size, device=device, dtype=dtype)
    best = math.inf
    for _ in range(7):
        began = time.perf_counter()
        a @ a
        _wait(device)
        best = min(best, time.perf_counter() - began)
    return 2.0 * size**3 / best, f"best of 7 products of {size} x {size} matrices here"
