"""Memory of each role on its device, and disk of a run, in bytes.

Engines: weights in their dtype, keys and values of a full batch, and what a process takes beside them (CONTEXT: CUDA's own
memory, activations, graphs; assumed, not measured). The trainer: `dat_ray.training.memory`, which an H200 confirmed (28.8 GB
by arithmetic, 29.4 measured).
"""

from __future__ import annotations

from dat_ray.config.models import SamplerConfig, TargetConfig
from dat_ray.config.training import TrainingConfig
from dat_ray.planning.shapes import ModelShape
from dat_ray.planning.speed import Answers, cache_bytes
from dat_ray.training.memory import update_bytes

CONTEXT = 1.5e9
DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
# Of a stored row: texts, ids and figures.
ROW_BYTES = 2000
# Bytes of an adapter's parameter in a checkpoint: itself and AdamW's two moments; checkpoints that are kept.
CHECKPOINT_BYTES, CHECKPOINTS = 12, 2


def weight_bytes_of(config: SamplerConfig | TargetConfig, model: ModelShape) -> float:
    """Weights as an engine holds them, of one device where `tensor_parallel` splits them."""
    each = 1 if config.quantization == "fp8" else DTYPE_BYTES[config.dtype]
    return float(each * model.stored) / config.tensor_parallel


def sampler_bytes(config: SamplerConfig, model: ModelShape, masks: float) -> float:
    """Of a sampler: weights, hidden states of a batch in a layer, and logits of its masked positions in float32."""
    shape = model.active
    states = config.max_batched_tokens * 2.0 * (6 * shape.width + 3 * shape.hidden)
    logits = 4.0 * 2 * config.batch_size * masks / 2 * shape.vocabulary
    return weight_bytes_of(config, model) + states + logits + CONTEXT


def target_bytes(config: TargetConfig, model: ModelShape, work: Answers, *, on_gpu: bool) -> float:
    """Of a chat model: weights, the cache of a batch's longest rows (on a CPU `kv_cache_gib`), hidden states."""
    shape = model.active
    rows = min(config.max_model_len, work.prompt + work.written) * work.together
    cache = rows * cache_bytes(shape) if on_gpu else config.kv_cache_gib * 2**30
    states = config.max_batched_tokens * 2.0 * (6 * shape.width + 3 * shape.hidden)
    logits = 4.0 * 2 * work.together * shape.vocabulary
    return weight_bytes_of(config, model) + cache / config.tensor_parallel + states + logits + CONTEXT


def trainer_bytes(config: TrainingConfig, model: ModelShape, workers: int) -> float:
    """Of a training worker: its largest backward pass."""
    harmful, retain = (-(-rows // workers) for rows in (config.harmful_rows, config.retain_rows))
    micro = config.micro_rows or max(harmful, retain, 1)
    parts = update_bytes(
        model.active,
        rank=config.lora.rank,
        # Both responses of a harmful row are in one backward pass.
        rows=max(2 * min(harmful, micro), min(retain, micro)),
        tokens=config.max_tokens,
        response=config.max_tokens // 2,
        checkpointing=config.activation_checkpointing,
    )
    weights = parts["weights"] * DTYPE_BYTES[config.dtype] / 2
    weights /= workers if config.shard_weights else 1
    return parts["total"] - parts["weights"] + weights + CONTEXT


def search_bytes(config: TargetConfig, model: ModelShape, rows: int, tokens: float, response: float) -> float:
    """Of a search with gradients: weights, one layer's states of a batch, its keys and values, float32 logits of responses."""
    shape = model.active
    states = rows * tokens * 2.0 * (6 * shape.width + 4 * shape.hidden)
    cache = rows * tokens * cache_bytes(shape)
    return weight_bytes_of(config, model) + states + cache + 4.0 * 3 * rows * response * shape.vocabulary + CONTEXT


def checkpoint_bytes(config: TrainingConfig, model: ModelShape, updates: float) -> float:
    """Checkpoints of a training of so many updates, its adapter, and those that it keeps on its way."""
    kept = (round(updates) - 1) // config.keep_every if config.keep_every else 0
    return float(CHECKPOINTS * CHECKPOINT_BYTES + 4 * (1 + kept)) * model.active.lora_parameters(config.lora.rank)
