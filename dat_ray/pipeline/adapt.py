"""`dat adapt`: from a causal chat model to a folder that samples prompts by masked diffusion.

dat adapt embedded:smollm2-135m-instruct --out samplers/mine
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import multiprocessing
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerBase

from dat_ray import __version__
from dat_ray.config.adapt import AdaptRecipe
from dat_ray.diffusion.adapt import AdaptResult, adapt
from dat_ray.diffusion.canvas import SamplerSpec, banned_ids
from dat_ray.diffusion.pairs import ChatSegments, encode_pairs, read_pairs, split_pairs
from dat_ray.errors import DatError, InputError
from dat_ray.models.chat import ChatFormat
from dat_ray.models.embedded import resolve_model
from dat_ray.models.folders import replace_folder
from dat_ray.models.loading import (
    ADAPTER_WEIGHTS,
    load_causal_lm,
    load_tokenizer,
    model_fingerprint,
    save_adapter,
    write_merged,
)
from dat_ray.pipeline.synthesize import synthesize
from dat_ray.progress import Progress, stage_line


def adapt_model(base: str, out: str, recipe: AdaptRecipe, pairs_path: str | None = None, resume: bool = False) -> Path:
    """Makes a sampler folder.

    Args:
        base: hub id, folder, or `embedded:NAME` of a Llama-like chat model.
        out: gets `pairs.jsonl`, `training/` (checkpoints, curve, adapter), `weights/` (what the package ships:
            adapter, `sampler.json`, `record.json`) and `sampler/` (merged, for the engines).
        recipe: see `AdaptRecipe`.
        pairs_path: JSON lines with `prompt` and `response`; None lets the model write its own.
        resume: continue what is there.

    Returns:
        The merged folder, a value for `sampler.model`.

    Raises:
        InputError: `out` holds something and `resume` is off; unreadable pairs.
    """
    root = Path(out)
    if root.exists() and any(root.iterdir()) and not resume:
        raise InputError("--out", out, "is not empty: choose another folder, or add --resume to continue there")
    root.mkdir(parents=True, exist_ok=True)
    model_folder = resolve_model(base, "BASE")
    pairs_file = root / "pairs.jsonl"
    if pairs_path is not None:
        shutil.copyfile(pairs_path, pairs_file)
    else:
        _synthesize_apart(model_folder, recipe, pairs_file)

    rows = read_pairs(pairs_file)
    train_rows, heldout_rows = split_pairs(rows, recipe.heldout_share, recipe.rows_per_prompt)
    tokenizer = load_tokenizer(model_folder)
    segments = _segments(tokenizer, recipe)
    limits = (recipe.max_prompt_tokens, recipe.max_response_tokens)
    train = encode_pairs(tokenizer, segments, train_rows, *limits)
    heldout = encode_pairs(tokenizer, segments, heldout_rows, *limits)
    stage_line(f"pairs: {len(rows)} written, {len(train)} to train on, {len(heldout)} held out")

    torch.set_num_threads(recipe.threads)
    model = load_causal_lm(model_folder, recipe.dtype)
    with Progress("adapt", recipe.training.steps, unit="steps") as progress:
        result = adapt(model, train, heldout, recipe.training, root / "training", progress=progress.update, resume=resume)
    _say(result)

    spec = _sampler_spec(tokenizer, segments, recipe.training.mask_token_id, model.config.vocab_size)
    facts = {"pairs": len(rows), "train": len(train), "heldout": len(heldout), "pairs_sha256": _digest(pairs_file)}
    _write_weights(root / "weights", result, spec, recipe, base, model_fingerprint(model_folder), facts)
    merged = (root / "sampler").absolute()
    with replace_folder(merged) as scratch:
        write_merged(model_folder, str(root / "weights"), scratch, dtype="float32")
        spec.write(scratch)
    stage_line(f"sampler: {merged}")
    return merged


def _synthesize_apart(model_folder: str, recipe: AdaptRecipe, pairs_file: Path) -> None:
    """Runs the synthesis in a process of its own, so that the engine's memory is free again for the training."""
    worker = multiprocessing.get_context("spawn").Process(
        target=synthesize, args=(model_folder, recipe.synthesis, pairs_file, recipe.threads)
    )
    worker.start()
    worker.join()
    if worker.exitcode != 0:
        raise DatError(f"writing pairs failed with exit code {worker.exitcode} (see above); --resume continues it")


def _segments(tokenizer: PreTrainedTokenizerBase, recipe: AdaptRecipe) -> ChatSegments:
    before, between = ChatFormat(tokenizer).segments()
    if recipe.canvas_opening is not None:
        before = tokenizer(recipe.canvas_opening, add_special_tokens=False).input_ids
    return ChatSegments(tuple(before), tuple(between))


def _sampler_spec(tokenizer: PreTrainedTokenizerBase, segments: ChatSegments, mask_token_id: int, vocabulary: int) -> SamplerSpec:
    """What the denoising law must know of this model; becomes `dat_sampler` in its config.json."""
    banned = banned_ids(tokenizer, mask_token_id, vocabulary)
    return SamplerSpec(mask_token_id, 1, banned, "chat", segments.before, segments.between)


def _write_weights(
    folder: Path,
    result: AdaptResult,
    spec: SamplerSpec,
    recipe: AdaptRecipe,
    base: str,
    base_fingerprint: str,
    facts: dict[str, Any],
) -> None:
    """The adapter in bfloat16, half the bytes, with what the engines must know and the record of its making."""
    save_adapter(result.model, str(folder), base_fingerprint)
    tensors = load_file(folder / ADAPTER_WEIGHTS)
    save_file({name: tensor.to(torch.bfloat16) for name, tensor in tensors.items()}, folder / ADAPTER_WEIGHTS)
    (folder / "sampler.json").write_text(json.dumps(dataclasses.asdict(spec), indent=1) + "\n", encoding="utf-8")
    record: dict[str, Any] = {
        "base": base,
        "base_fingerprint": base_fingerprint,
        "dat_ray": __version__,
        "torch": torch.__version__,
        "data": facts,
        "heldout_before": dataclasses.asdict(result.before),
        "heldout_after": dataclasses.asdict(result.after),
        "recipe": recipe.model_dump(mode="json"),
    }
    for name in ("heldout_before", "heldout_after"):
        record[name] = {key: record[name][key] for key in ("own", "other", "gain", "low", "high")}
    (folder / "record.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def _say(result: AdaptResult) -> None:
    for name, gain in (("before", result.before), ("after", result.after)):
        stage_line(
            f"held-out prompts, {name}: {gain.own:.3f} nats/token given their own response, {gain.other:.3f} given another's; "
            f"gain {gain.gain:.3f} (95% interval {gain.low:.3f} to {gain.high:.3f})"
        )


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
