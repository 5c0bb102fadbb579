"""`dat export`: what a run has trained, as folders that other tools load.

OUT/            the merged model: safetensors, configuration, tokenizer, README.md (model card), dat_export.json
OUT/adapter/    the PEFT adapter with a card of its own, as `--push` sends it to a hub
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow.fs as pafs

from dat_ray import __version__
from dat_ray.config.schema import Recipe
from dat_ray.config.sources import annotated
from dat_ray.data.links import refuse_links
from dat_ray.data.rundir import FIRST_ROUND, RunDir, RunRecord, last_round, open_to_read, rewrites_folder
from dat_ray.data.shards import exists, has_manifest, join, open_filesystem, read_manifest
from dat_ray.data.storage import answers_of
from dat_ray.errors import DatError, InputError
from dat_ray.evaluation.results import METRICS, BrokenRate, Metrics, load_metrics
from dat_ray.measures.intervals import Interval
from dat_ray.models.adapter_settings import ADAPTER_CONFIG
from dat_ray.models.folders import replace_folder
from dat_ray.models.hub import hub_id_of
from dat_ray.models.identity import pinned_revision, recorded_weights
from dat_ray.models.merging import write_merged
from dat_ray.models.served import served_model
from dat_ray.reporting.findings import attacked_otherwise
from dat_ray.reporting.words import refusal_reader
from dat_ray.training.retain_set import retain_folder
from dat_ray.training.trained import check_trained

RECORD = "dat_export.json"
CARD = "README.md"
CHAT_TEMPLATE = "chat_template.jinja"


def export_run(root: str, out: str) -> Path:
    """Writes the merged model, its tokenizer and card, and the adapter of the run's round.

    Args:
        root: run directory, local path or URI.
        out: local folder; an export that is there is replaced as a whole, anything else is left alone.

    Raises:
        InputError: no run there, one with links that lead out of it, or a folder that holds something else.
        DatError: the run has no finished adapter, or it is not what the training left.
    """
    run, record = open_to_read(root)
    # A folder that people publish: nothing comes along from elsewhere.
    refuse_links(run.root)
    recipe = record.recipe
    trained = run.training(last_round(recipe))
    if not has_manifest(trained):
        raise DatError(f"{trained} holds no finished training: run `dat train --run-dir {root}` first")
    check_trained(trained, record.fingerprint)
    folder = own_folder(out)
    revision = pinned_revision(recipe.target, recorded_weights(run.root).get("target.model"), "target.model")
    base = served_model(recipe.target.model, "target.model", revision)
    card = model_card(recipe, run, record)
    with tempfile.TemporaryDirectory(prefix="dat-export-") as scratch, replace_folder(folder) as place:
        adapter = Path(scratch) / "adapter"
        adapter.mkdir()
        trained_here = run.adapter(last_round(recipe))
        fs, inner = open_filesystem(trained_here)
        with answers_of(trained_here):
            pafs.copy_files(inner, str(adapter), source_filesystem=fs, destination_filesystem=pafs.LocalFileSystem())
        write_merged(base, str(adapter), place, dtype=None)
        if recipe.target.chat_template is not None:
            # transformers reads this file before a template in tokenizer_config.json.
            (place / CHAT_TEMPLATE).write_text(recipe.target.chat_template, encoding="utf-8")
        shutil.copytree(adapter, place / "adapter")
        (place / "adapter" / CARD).write_text(model_card(recipe, run, record, adapter_alone=True), encoding="utf-8")
        if hub_id_of(base) is not None:
            _name_base(place / "adapter" / ADAPTER_CONFIG, recipe.target.model, Path(base).name)
        (place / CARD).write_text(card, encoding="utf-8")
        content = {"run": record.fingerprint, "recipe": recipe.name, "dat_ray": __version__, "base": recipe.target.model}
        (place / RECORD).write_text(json.dumps(content, indent=1), encoding="utf-8")
    return folder


def own_folder(out: str) -> Path:
    """The folder of an export.

    Raises:
        InputError: it holds something that is none.
    """
    folder = Path(out).expanduser().absolute()
    if folder.exists() and not (folder / RECORD).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError("--out", out, "holds something that is no export: choose another folder")
    return folder


def _on_hub(model: str) -> bool:
    return not model.startswith("embedded:") and not Path(model).expanduser().exists()


def _name_base(path: Path, model: str, commit: str) -> None:
    """PEFT then finds the base model by itself."""
    config = json.loads(path.read_text(encoding="utf-8")) | {"base_model_name_or_path": model, "revision": commit}
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def model_card(recipe: Recipe, run: RunDir, record: RunRecord, *, adapter_alone: bool = False) -> str:
    """A model card in Markdown: what it is, its recipe, what it was trained on, and what was measured of it.

    Args:
        recipe: the run's.
        run: its directory; evaluations that are there are shown.
        record: of `run.json`.
        adapter_alone: for the adapter's folder rather than the merged model's.
    """
    base = recipe.target.model
    kind = ["library_name: peft"] if adapter_alone else []
    known = [f"base_model: {base}"] if _on_hub(base) else []
    front = ["---", *known, *kind, "tags: [adversarial-training, safety, dat-ray]", "---"]
    holds = (
        "This is the LoRA adapter alone, to be loaded on that base; `dat export` writes the merged weights beside it."
        if adapter_alone
        else "This folder holds the merged weights, `adapter/` the LoRA adapter alone."
    )
    lines = [
        *front,
        "",
        f"# {base}, after adversarial fine-tuning",
        "",
        f"Fine-tuned from `{base}` by dat_ray {record.version} with the recipe `{recipe.name}` "
        f"(seed {recipe.seed}, fingerprint `{record.fingerprint}`). {holds} The base model's license applies.",
        "",
        "## What was measured",
        "",
        *(list(_measured(run)) or ["Not evaluated."]),
        "",
        "## What it was trained on",
        "",
        "| table | rows | sha256 of its files |",
        "|---|---|---|",
        *_tables(recipe, run),
        "",
        "The texts are not part of this folder.",
        "",
        "## Recipe",
        "",
        "```yaml",
        annotated(recipe).rstrip(),
        "```",
        "",
    ]
    return "\n".join(lines)


def _tables(recipe: Recipe, run: RunDir) -> Iterator[str]:
    folders = {
        "training set": run.training_set(last_round(recipe)),
        "rewrites": rewrites_folder(run, last_round(recipe)),
        "retain set": retain_folder(run, FIRST_ROUND),
    }
    for name, folder in folders.items():
        if has_manifest(folder):
            found = read_manifest(folder)
            yield f"| {name} | {found.rows} | {', '.join(f'`{file.sha256[:16]}`' for file in found.files)} |"


def _measured(run: RunDir) -> Iterator[str]:
    for suite in run.suites():
        folder = run.evaluation(suite)
        if exists(join(folder, METRICS)):
            yield from _suite(suite, load_metrics(folder))


def _suite(suite: str, metrics: Metrics) -> Iterator[str]:
    judge = metrics.judge
    proxy = f", a {'rule-based ' if judge.by_rules else ''}proxy that sees refusals, not harm" if judge.is_proxy else ""
    yield f"Suite `{suite}`, judge `{judge.name}`{proxy}; attack success rates with {metrics.confidence:.0%} intervals."
    yield ""
    yield "| model | attack | success | interval | behaviors |"
    yield "|---|---|---|---|---|"
    for name, model in metrics.models.items():
        rates: dict[str, BrokenRate] = {**model.attacks, "any of them": model.boa}
        for attack, cell in rates.items():
            if cell.asr is not None:
                yield f"| {name} | {attack} | {cell.asr:.1%} | {_interval(cell.interval)} | {cell.n_behaviors} |"
    for sentence in attacked_otherwise(metrics):
        yield from ("", sentence)
    reader = refusal_reader(metrics)
    by = "" if reader is None else f" by `{reader.name}`{', a proxy' if reader.by_rules else ''}"
    for name, model in metrics.models.items():
        refused = model.over_refusal.interval
        if refused.value is not None:
            yield ""
            yield f"Harmless prompts refused{by}, {name}: {refused.value:.1%} {_interval(refused)}."
    yield ""


def _interval(found: Interval) -> str:
    return "(no interval)" if found.low is None or found.high is None else f"[{found.low:.1%}, {found.high:.1%}]"
