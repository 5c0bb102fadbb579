"""Seconds of a model's work on a device: operations over rates that were measured, and what a launch costs.

Constants, and the records that they are from. None was fitted to what tests/unit/planning compares with.

- PRODUCTS: bare bfloat16 products of LLaDA's layers took 713 to 753 of an H200's 989 TFLOP/s (2026-11-26). The record's sampler
  lines (3.37 prompts/s compiled, 48 to 49% not compiled) check it, and so does the update of Llama-3-8B's shape.
- RECORDED_LAYER, EAGER_LAYER: seconds that a step forward and backward with an adapter takes a layer beyond its products, for a
  CUDA graph and launched kernel by kernel: from the inner attack on a 1B shape, 10.7 and 4.49 rows/s, 20 steps, 8 rows of 128
  tokens, 16 layers (2026-11-26). The update of the 8B shape, 2.22 s, checks them.
- STREAMING, DECODING_STEP, PLAIN_LAYER, GPU_START: not measured here. What is bound by memory gets 70% of the data sheet, a step
  of vLLM's decoding 3 ms beside its reading, a layer without adapter launched kernel by kernel 1 ms, an engine 90 s to start.
- CPU_SAMPLER: `dat bench vllm-sampler`, 2.21 prompts/s on two cores with AVX-512 (2026-11-25). Above 1: vLLM's products are
  faster than the plain one that the rate of a core is from.
- CPU_TRAINING, CPU_TARGET, CPU_START, CPU_STAGE, CPU_STREAM: round numbers that give the stages of that day's demo on that
  machine (2:53 generate, 7:54 train, 3:08 evaluate; docs/experiments.md). The machine with AVX2 alone (5:15,
  12:34, 4:49) checks them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from dat_ray.devices import Device
from dat_ray.planning.shapes import ModelShape
from dat_ray.training.memory import LlamaShape

PRODUCTS = 0.74
STREAMING = 0.7
RECORDED_LAYER, EAGER_LAYER, PLAIN_LAYER = 1.9e-3, 5.1e-3, 1.0e-3
# A forward pass is a third of a step forward and backward.
FORWARD_SHARE = 1 / 3
DECODING_STEP = 3e-3
GPU_START, LOADING = 90.0, 1e9
CPU_SAMPLER, CPU_TARGET, CPU_TRAINING = 1.25, 1.0, 0.55
CPU_START, CPU_STAGE, CPU_STREAM = 30.0, 15.0, 40.0


@dataclass(frozen=True)
class Host:
    """A device as one actor uses it.

    Attributes:
        device: the whole of it.
        threads: of the actor, on a CPU.
    """

    device: Device
    threads: int = 1

    def products(self, operations: float, cpu_share: float) -> float:
        """Seconds of matrix products."""
        if self.device.is_gpu:
            return operations / (PRODUCTS * self.device.flops)
        cores = min(self.threads, self.device.cores)
        return operations / (cpu_share * self.device.flops * cores / self.device.cores)

    def streaming(self, bytes_: float) -> float:
        """Seconds in which memory is read or written."""
        return bytes_ / (STREAMING * self.device.bandwidth)

    def start(self, weights: float) -> float:
        """Seconds from an actor's start to its first row."""
        return GPU_START + weights / LOADING if self.device.is_gpu else CPU_START


def forward_flops(shape: LlamaShape, tokens: float, heads: float, context: float = 0.0) -> float:
    """Operations of a forward pass: 2 a weight and token, 4 Q a layer, token and token that it sees, 2 V D a row of logits.

    Args:
        shape: of what the tokens go through.
        tokens: in all.
        heads: positions whose logits are computed.
        context: tokens that one of them sees.
    """
    attention = 4.0 * shape.layers * shape.query_width * context
    return tokens * (2.0 * shape.decoder_parameters + attention) + 2.0 * shape.head_parameters * heads


def between_products(shape: LlamaShape, *, joined: bool) -> float:
    """Bytes that one token moves between a decoder's products, in 2-byte values.

    Two norms, two additions, rotations of queries and keys, attention's own, the activation and its product. Joined as a
    compiler does, each reads its inputs and writes its output once; launched one by one, norms go through float32 and rotations
    through four kernels.
    """
    D, F, K, Q = shape.width, shape.hidden, shape.keys, shape.query_width
    values = 10 * D + 4 * Q + 4 * K + 3 * F if joined else 40 * D + 12 * Q + 12 * K + 5 * F
    return 2.0 * shape.layers * values


@dataclass(frozen=True)
class Infill:
    """A sampler's work on one prompt.

    Attributes:
        canvas: tokens of a canvas.
        masks: of them, the prompt's.
        passes: forward passes, each over the whole canvas.
    """

    canvas: float
    masks: float
    passes: float

    def flops(self, shape: LlamaShape) -> float:
        """Operations; the head runs on what is masked, half of the prompt on average."""
        masked = self.masks * (self.passes + 1) / (2 * self.passes)
        return self.passes * forward_flops(shape, self.canvas, masked, self.canvas)


def infill_seconds(host: Host, model: ModelShape, work: Infill, *, joined: bool) -> float:
    """Seconds for one prompt of full batches.

    Args:
        host: where.
        model: the sampler.
        work: on one prompt.
        joined: whether what lies between products is compiled or joined by vLLM.
    """
    seconds = host.products(work.flops(model.active), CPU_SAMPLER)
    if host.device.is_gpu:
        seconds += host.streaming(work.passes * work.canvas * between_products(model.active, joined=joined))
    return seconds


@dataclass(frozen=True)
class Answers:
    """What a chat model is asked.

    Attributes:
        rows: questions.
        prompt: tokens of one.
        written: tokens of an answer, all of which are written.
        together: rows of a batch.
    """

    rows: float
    prompt: float
    written: float
    together: int

    @property
    def tokens(self) -> float:
        """Read and written."""
        return self.rows * (self.prompt + self.written)


def answer_seconds(host: Host, model: ModelShape, work: Answers, dtype_bytes: int, *, launched: bool) -> float:
    """Seconds to read the prompts and to write the answers token by token, in batches.

    Args:
        host: where.
        model: that answers.
        work: the questions.
        dtype_bytes: of a weight.
        launched: kernel by kernel, as the torch backend does.
    """
    if not work.rows:
        return 0.0
    shape = model.active
    length = work.prompt + work.written / 2
    reading = host.products(forward_flops(shape, work.rows * work.prompt, work.rows, work.prompt / 2), CPU_TARGET)
    batch = min(float(work.together), work.rows)
    steps = work.written * math.ceil(work.rows / batch)
    products = host.products(forward_flops(shape, batch, batch, length), CPU_TARGET)
    if not host.device.is_gpu:
        return reading + steps * products
    moved = dtype_bytes * model.stored + batch * length * cache_bytes(shape)
    step = max(products, host.streaming(moved)) + DECODING_STEP + (shape.layers * PLAIN_LAYER if launched else 0.0)
    return reading + steps * step


def cache_bytes(shape: LlamaShape) -> float:
    """Keys and values of one token, in 2-byte values."""
    return 2.0 * 2 * shape.layers * shape.keys


def step_seconds(host: Host, shape: LlamaShape, flops: float, launches: float) -> float:
    """Seconds of training's passes.

    Args:
        host: where.
        shape: of the model.
        flops: operations.
        launches: seconds a layer beyond its products, on a GPU.
    """
    return host.products(flops, CPU_TRAINING) + (shape.layers * launches if host.device.is_gpu else 0.0)
