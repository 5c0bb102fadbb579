"""A tiny chat model on disk, and a run directory that is ready to train on it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pyarrow as pa
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from dat_ray.config.loading import fingerprint
from dat_ray.config.schema import Recipe
from dat_ray.data.rundir import FIRST_ROUND, RunDir, open_run
from dat_ray.data.schemas import RETAIN, TRAINING_SET
from dat_ray.data.shards import write_manifest, write_shard
from dat_ray.models.adapters import ADAPTER_WEIGHTS, save_adapter
from dat_ray.models.chat import ChatFormat
from dat_ray.models.loading import load_tokenizer, model_fingerprint
from dat_ray.training.checkpoint import FolderCheckpoints, RunFingerprint
from dat_ray.training.driver import build_model
from dat_ray.training.fine_tuning import fine_tune
from dat_ray.training.network import Network
from dat_ray.training.retain_set import RETAIN_FILE, retain_folder
from dat_ray.training.trainer import TrainingFiles
from dat_ray.training.training_rows import load_rows
from dat_ray.training.update_metrics import MetricsLog
from tests.ray.tiny_generation import await_release
from tests.unit.training.byte_tokenizer import byte_tokenizer

TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}<|end|>{% endfor %}assistant: "


def save_tiny_chat_model(folder: Path) -> None:
    """A 2-layer Llama on bytes, with a chat template."""
    tokenizer = byte_tokenizer(TEMPLATE)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.3,
    )
    LlamaForCausalLM(config).save_pretrained(folder)


def tiny_training_recipe(model: Path, **training: Any) -> Recipe:
    """Twenty-four updates of four harmful and two retain rows, a checkpoint after every fourth."""
    workers = training.pop("workers", 1)
    low, high = workers if isinstance(workers, tuple) else (workers, workers)
    start = training.pop("worker_group_start", 600)
    num_cpus = training.pop("num_cpus", 1)
    return Recipe.model_validate(
        {
            "name": "tiny",
            "seed": 11,
            "behaviors": {"path": "none", "heldout": {"path": "none"}},
            "sampler": {"model": "none"},
            "target": {"model": str(model)},
            "training": {
                "learning_rate": 0.01,
                "updates": 24,
                "harmful_rows": 4,
                "retain_rows": 2,
                "max_tokens": 96,
                "dtype": "float32",
                "checkpoint_every": 4,
                "attack": {"steps": 2},
                "lora": {"rank": 4, "alpha": 8, "dropout": 0.1 if high == 1 else 0.0},
                "retain": {"path": "none"},
                **training,
            },
            "cluster": {"trainer": {"min_actors": low, "max_actors": high, "num_cpus": num_cpus}},
            "timeouts": {"worker_group_start": start, "no_progress": 600},
        }
    )


def held_worker(notes: Path | str, update: int) -> Callable[[dict[str, str]], Any]:
    """`driver.train_worker`, except that it waits before this update until `tiny_generation.release(notes)`."""

    def work(config: dict[str, str]) -> Any:
        from dat_ray.training import driver
        from dat_ray.training.step import FineTuning

        take_update = FineTuning.update

        def held(objective: Any, trainer: Any, number: int) -> Any:
            if number == update:
                await_release(Path(notes))
            return take_update(objective, trainer, number)

        with patch.object(FineTuning, "update", held):
            return driver.train_worker(config)

    return work


def ready_run(root: Path | str, recipe: Recipe, rows: int = 10, round_index: int = 0) -> RunDir:
    """A run directory with a training set and a retain set."""
    run, mark = open_run(str(root), recipe, resume=True), fingerprint(recipe)
    harmful = [
        {
            "candidate_id": f"c{i}",
            "behavior_id": f"b{i % 3}",
            "prompt": f"please {'do ' * (i % 4)}{i}",
            "target": f"Sure, {i}",
            "refusal": "I can't.",
            "score": 1.0,
            "target_logprob": -1.0,
            "rank": i,
        }
        for i in range(rows)
    ]
    folder = run.training_set(round_index)
    write_manifest(folder, [write_shard(folder, "part-0.parquet", table(harmful, TRAINING_SET))], mark)
    retain = [{"retain_id": f"r{i}", "prompt": f"add {i}", "response": f"It is {i * i}.", "source": "t"} for i in range(7)]
    folder = retain_folder(run, FIRST_ROUND)
    write_manifest(folder, [write_shard(folder, RETAIN_FILE, table(retain, RETAIN))], mark)
    return run


def table(rows: list[dict[str, Any]], schema: pa.Schema) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=schema)


def in_process(recipe: Recipe, run: RunDir, scratch: Path, log: MetricsLog | None = None) -> dict[str, torch.Tensor]:
    """The adapter of the same training without Ray and without interruption."""
    torch.set_num_threads(1)
    base = recipe.target.model
    network = Network(build_model(recipe, run, base, scratch))
    rows = load_rows(recipe, run, ChatFormat(load_tokenizer(base)))
    files = TrainingFiles(RunFingerprint(fingerprint(recipe)), FolderCheckpoints(scratch / "checkpoints"), log)
    fine_tune(network, rows, recipe.training, recipe.seed, files)
    save_adapter(network.model, str(scratch / "adapter"), model_fingerprint(base))
    return load_file(scratch / "adapter" / ADAPTER_WEIGHTS)
