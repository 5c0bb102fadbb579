"""`dat adapt`: from a causal chat model to a folder that samples prompts by masked diffusion.

dat adapt embedded:smollm2-135m-instruct --out samplers/mine --recipe smollm2-135m-infill
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerBase

from dat_ray import __version__
from dat_ray.config.adapt import AdaptRecipe, PairsConfig
from dat_ray.data.hold import hold
from dat_ray.data.links import refuse_links
from dat_ray.data.shards import write_bytes
from dat_ray.data.stored import stored_object
from dat_ray.diffusion.canvas import SamplerSpec, banned_ids, unused_ids
from dat_ray.diffusion.pairs import read_pairs
from dat_ray.errors import DatError, InputError
from dat_ray.models.adaptable import check_adaptable
from dat_ray.models.adapter_settings import ADAPTER_CONFIG
from dat_ray.models.adapters import ADAPTER_RECORD, ADAPTER_WEIGHTS, refuse_unstored
from dat_ray.models.embedded import resolve_model
from dat_ray.models.folders import replace_folder
from dat_ray.models.loading import (
    DTYPES,
    load_causal_lm,
    load_model_config,
    load_tokenizer,
    model_files,
    model_fingerprint,
    use_tensor_cores,
)
from dat_ray.models.lora_layers import lora_layers
from dat_ray.models.merging import write_merged
from dat_ray.models.weight_files import refuse_quantized, weight_files
from dat_ray.pipeline.adapt_data import Prepared, chat_segments, prepare
from dat_ray.pipeline.apart import run_apart
from dat_ray.pipeline.synthesize import synthesize
from dat_ray.progress import Progress, stage_line
from dat_ray.training.adaptation import RESULT, adapt, lora_of, save_adapted
from dat_ray.training.update_metrics import METRICS, read_metrics

BEGUN = "begun.json"


def adapt_model(base: str, out: str, recipe: AdaptRecipe, pairs: str | None = None, resume: bool = False) -> Path:
    """Makes a sampler folder.

    Args:
        base: hub id, folder, or `embedded:NAME` of a chat model of Llama's, Qwen2's or Qwen3's layout, or, where every weight
            is trained, of Qwen3-MoE's.
        out: gets `pairs.jsonl`, `training/` (checkpoints, curve, adapter or model), `weights/` (what the package ships:
            adapter, `sampler.json`, `record.json`) and `sampler/` (whole, for the engines).
        recipe: see `AdaptRecipe`.
        pairs: a table with prompts and responses, see `read_pairs`; None lets the model write its own.
        resume: continue what is there.

    Returns:
        The whole folder, a value for `sampler.model`.

    Raises:
        DatError: another process makes a sampler there.
        InputError: `out` holds something and `resume` is off, or a link that leads out of it, or was begun with another base;
            unreadable pairs; no token is free to be the mask; a base of another layout, of which no sampler is known, or one
            that cannot be trained by the recipe's method.
    """
    root = Path(out).absolute()
    if root.exists() and any(root.iterdir()) and not resume:
        raise InputError("--out", out, "is not empty: choose another folder, or add --resume to continue there")
    refuse_links(str(root), "--out")
    model_folder = resolve_model(base, "BASE")
    recipe, vocabulary = _checked(base, model_folder, recipe)
    with hold(str(root)):
        return _make(base, model_folder, root, recipe, vocabulary, pairs)


def _make(base: str, model_folder: str, root: Path, recipe: AdaptRecipe, vocabulary: int, pairs: str | None) -> Path:
    pairs_file = root / "pairs.jsonl"
    fingerprint = model_fingerprint(model_folder)
    _check_begun(root, fingerprint, recipe, written=pairs is None)
    if pairs is not None:
        _store_pairs(pairs, recipe.pairs, pairs_file)
    else:
        _synthesize_apart(model_folder, recipe, pairs_file)

    prepared = prepare(model_folder, recipe, pairs_file)
    stage_line(f"pairs: {prepared.pairs} in all, {len(prepared.split.train)} to train on, {len(prepared.split.heldout)} held out")
    with Progress("adapt", recipe.training.steps, unit="steps") as progress:
        if recipe.trainer.min_actors > 1:
            from dat_ray.pipeline.adapt_workers import adapt_in_workers

            adapt_in_workers(base, root, recipe, progress)
        else:
            torch.set_num_threads(recipe.threads)
            use_tensor_cores(DTYPES[recipe.dtype])
            model = load_causal_lm(model_folder, recipe.dtype).to("cuda" if torch.cuda.is_available() else "cpu")
            adapted = adapt(model, prepared.split, recipe.training, root / "training", progress=progress.update)
            save_adapted(adapted.model, root / "training", fingerprint)
    result = stored_object(str(root / "training" / RESULT), finite=False)
    _say(result, root / "training")

    mask_token_id = recipe.training.mask_token_id
    assert mask_token_id is not None
    spec = _sampler_spec(prepared, mask_token_id, vocabulary)
    facts = {
        "pairs": prepared.pairs,
        "train": len(prepared.split.train),
        "heldout": len(prepared.split.heldout),
        "pairs_sha256": _digest(pairs_file),
    }
    record = _record(result, recipe, base, fingerprint, facts)
    whole = root / "sampler"
    if recipe.training.method == "lora":
        _write_adapter(root / "training" / "adapter", root / "weights")
    (root / "weights").mkdir(exist_ok=True)
    (root / "weights" / "sampler.json").write_text(json.dumps(dataclasses.asdict(spec), indent=1) + "\n", encoding="utf-8")
    (root / "weights" / "record.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    with replace_folder(whole) as scratch:
        if recipe.training.method == "lora":
            write_merged(model_folder, str(root / "weights"), scratch, dtype="float32")
        else:
            shutil.copytree(root / "training" / "model", scratch, dirs_exist_ok=True)
            prepared.tokenizer.save_pretrained(str(scratch))
        spec.write(scratch)
    stage_line(f"sampler: {whole}")
    return whole


def _check_begun(root: Path, fingerprint: str, recipe: AdaptRecipe, *, written: bool) -> None:
    """Refuses to go on with another base or with other pairs of the model's own; the training checks its settings and its rows.

    Args:
        root: of the sampler; where nothing says what it was begun with, it is now.
        fingerprint: of the base.
        recipe: of this call.
        written: whether the model writes its pairs. How many may change: those that are there stay as they are.
    """
    begun: dict[str, Any] = {"BASE": fingerprint, "dtype": recipe.dtype}
    if written:
        synthesis = recipe.synthesis.model_dump(mode="json", exclude={"rows", "chunk"})
        begun |= {f"synthesis.{name}": value for name, value in synthesis.items()}
    path, record = root / BEGUN, root / "weights" / "record.json"
    there = stored_object(str(path)) if path.exists() else {}
    if not there and record.exists():  # finished by an earlier version
        there = {"BASE": stored_object(str(record))["base_fingerprint"]}
    differ = sorted(name for name in begun.keys() & there.keys() if begun[name] != there[name])
    if differ:
        raise InputError(
            "--out", str(root), f"was begun with another {', '.join(differ)}: name a new folder, or give what it was"
        )
    write_bytes(str(path), json.dumps(there | begun, indent=1).encode())


def _checked(base: str, folder: str, recipe: AdaptRecipe) -> tuple[AdaptRecipe, int]:
    """Checks before anything is made that the base can be trained and becomes a sampler that both backends load.

    Returns:
        The recipe with its mask token, and the rows of the embedding.
    """
    config = load_model_config(folder, "BASE")
    check_adaptable(config.to_dict(), base)
    refuse_quantized(folder, config.to_dict(), "BASE")
    # Of a hub model all is fetched here, which the making of pairs would do next.
    files = str(model_files(folder, "BASE"))
    weight_files(files, "BASE")
    refuse_quantized(files, config.to_dict(), "BASE")
    training, tokenizer = recipe.training, load_tokenizer(folder, "BASE")
    if training.method == "lora":
        layers = lora_layers(config, lora_of(training), "training.method", "lora", "set it to full, with dtype float32")
        refuse_unstored(files, layers, "BASE", base)
    canvas = chat_segments(tokenizer, recipe)
    mask = training.mask_token_id
    if mask is None:
        mask = free_token(tokenizer, config.vocab_size, base)
        stage_line(f"mask token: {mask} ({tokenizer.convert_ids_to_tokens(mask) or 'a row without a token'})")
    if mask >= config.vocab_size or mask in (*canvas.before, *canvas.between):
        why = "is in the chat template" if mask < config.vocab_size else f"is past the embedding's {config.vocab_size} rows"
        raise InputError("training.mask_token_id", mask, f"{why}: give the id of a token that no text uses, or leave it out")
    return recipe.model_copy(update={"training": training.model_copy(update={"mask_token_id": mask})}), config.vocab_size


def free_token(tokenizer: PreTrainedTokenizerBase, vocabulary: int, base: str) -> int:
    """A token that no text uses: the mask token, else the first reserved one, else a row that no token has, the first of
    those past the tokenizer's last where there are any.

    Raises:
        InputError: there is none.
    """
    if tokenizer.mask_token_id is not None and tokenizer.mask_token_id < vocabulary:
        return int(tokenizer.mask_token_id)
    added = tokenizer.added_tokens_decoder
    reserved = sorted(i for i, token in added.items() if token.special and "reserved" in token.content and i < vocabulary)
    if reserved:
        return int(reserved[0])
    unused = unused_ids(tokenizer, vocabulary)
    last = max(tokenizer.get_vocab().values())
    if unused:
        return next((i for i in unused if i > last), unused[0])
    raise InputError(
        "training.mask_token_id", None, f"{base} has no mask, reserved or unused token: give the id of one that no text uses"
    )


def _store_pairs(spec: str, config: PairsConfig, out: Path) -> None:
    """Copies the pairs of a table into the sampler's folder, so that it is whole by itself."""
    rows = read_pairs(spec, config)
    partial = out.with_name(out.name + ".partial")
    partial.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    os.replace(partial, out)


def _synthesize_apart(model_folder: str, recipe: AdaptRecipe, pairs_file: Path) -> None:
    """Runs the synthesis in a process of its own, so that the engine's memory is free again for the training."""
    code = run_apart(synthesize, model_folder, recipe.synthesis, pairs_file, recipe.threads)
    if code != 0:
        raise DatError(f"writing pairs failed with exit code {code} (see above); --resume continues it")


def _sampler_spec(prepared: Prepared, mask_token_id: int, vocabulary: int) -> SamplerSpec:
    """What the denoising law must know of this model; becomes `dat_sampler` in its config.json."""
    banned = banned_ids(prepared.tokenizer, mask_token_id, vocabulary)
    return SamplerSpec(mask_token_id, 1, banned, "chat", prepared.segments.before, prepared.segments.between)


def _write_adapter(trained: Path, folder: Path) -> None:
    """The adapter in bfloat16, half the bytes."""
    with replace_folder(folder) as scratch:
        tensors = load_file(trained / ADAPTER_WEIGHTS)
        save_file({name: tensor.to(torch.bfloat16) for name, tensor in tensors.items()}, scratch / ADAPTER_WEIGHTS)
        for name in (ADAPTER_CONFIG, ADAPTER_RECORD):
            shutil.copyfile(trained / name, scratch / name)


def _record(
    result: dict[str, Any], recipe: AdaptRecipe, base: str, base_fingerprint: str, facts: dict[str, Any]
) -> dict[str, Any]:
    """How the sampler was made, and its held-out figures."""
    return {
        "base": base,
        "base_fingerprint": base_fingerprint,
        "dat_ray": __version__,
        "torch": torch.__version__,
        "data": facts,
        "heldout_before": result["before"],
        "heldout_after": result["after"],
        "recipe": recipe.model_dump(mode="json"),
    }


def _say(result: dict[str, Any], training: Path) -> None:
    """The held-out figures before and after, and the curve between them."""
    for name in ("before", "after"):
        gain = result[name]
        stage_line(
            f"held-out prompts, {name}: {gain['own']:.3f} nats/token given their own response, {gain['other']:.3f} given "
            f"another's; gain {gain['gain']:.3f} (95% interval {gain['low']:.3f} to {gain['high']:.3f})"
        )
    for line in (row for row in read_metrics(str(training)) if "gain" in row):
        stage_line(f"      step {line['step']}: {line['own']:.3f} own, {line['other']:.3f} another's, gain {line['gain']:.3f}")
    stage_line(f"held-out curve: {training / METRICS}, the lines with `gain`")


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
