"""Scores stored completions again with another judge: no model is asked.

Every evaluation folder holds `replay.json`, which says what its rows are: the resolved recipe, the models with their
weights, and the versions they were made with. With it the folder can be copied anywhere and judged again.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from dat_ray.config.loading import fingerprint, validate_known_fields
from dat_ray.config.names import check_name, is_model_name, is_name
from dat_ray.config.schema import Recipe
from dat_ray.data.error_limit import ErrorLimit
from dat_ray.data.links import refuse_links
from dat_ray.data.rundir import RunDir
from dat_ray.data.schemas import ATTEMPTS
from dat_ray.data.shards import (
    MANIFEST,
    exists,
    has_manifest,
    join,
    read_bytes,
    read_file,
    read_manifest,
    read_table,
    write_bytes,
)
from dat_ray.data.stored import stored_object
from dat_ray.engines.pinning import JUDGES, pinned, prompts_of
from dat_ray.engines.roles import Engines
from dat_ray.errors import DatError, InputError
from dat_ray.evaluation.attacks.inpainting import HARMLESS_FOLDER
from dat_ray.evaluation.gap_pairs import RISKS_FOLDER
from dat_ray.evaluation.judges import JUDGE_READERS, start_judges
from dat_ray.evaluation.questions import EMPTY_ANSWER, SEARCHES_FOLDER, UNREADABLE
from dat_ray.evaluation.record import RECORD
from dat_ray.evaluation.registry import chosen_attacks
from dat_ray.evaluation.results import Metrics, ReplayedSuite, load_metrics, store_metrics
from dat_ray.evaluation.store import Chunk, ShardStore, error_rate
from dat_ray.evaluation.stored_effects import StoredEffects
from dat_ray.evaluation.summary import StoredRows, suite_metrics
from dat_ray.evaluation.target_likelihood import LIKELIHOODS
from dat_ray.models.identity import check_weights, models_of
from dat_ray.progress import Progress, ProgressCounter
from dat_ray.raysession import start_ray

OPTION = "--replay"
# What a judge wrote into a row; all of it is made anew.
VERDICT = ("judge", "verdict", "score", "second_judge", "second_verdict", "second_score")


@dataclass(frozen=True)
class Rescored:
    """What scoring again made.

    Attributes:
        root: its folder.
        rows: attempts that were scored.
        errors: attempts without a verdict.
        skipped: whether everything was there.
        metrics: as in `metrics.json`.
    """

    root: str
    rows: int
    errors: int
    skipped: bool
    metrics: Metrics


def read_record(where: str, option: str = OPTION) -> tuple[str, dict[str, Any]]:
    """The evaluation folder that an evaluation folder or a run directory means, and its record.

    The record's names can be parts of paths; what its recipe leads to is for `dat_ray.data.trust` to ask about.

    Args:
        where: an evaluation's folder, or a run directory, whose own suite it then is.
        option: or argument that gave it, for messages.

    Raises:
        InputError: there is no finished evaluation, one that an older version made, or a record that makes no sense.
    """
    root = RunDir(where.rstrip("/")).evaluation("default") if exists(RunDir(where).record) else where.rstrip("/")
    if "://" not in root:
        root = os.path.abspath(root)  # the new folder goes beside it, also beside `.`
    if not has_manifest(root):
        raise InputError(option, where, "holds no finished evaluation: give a folder evaluation/SUITE, or a run directory")
    if not exists(join(root, RECORD)):
        raise InputError(option, where, f"has no {RECORD}, as evaluations of older versions: evaluate again")
    try:
        record: dict[str, Any] = stored_object(join(root, RECORD))
        if not is_name(record["suite"]):
            raise ValueError("its suite's name is none")
        if not all(is_model_name(name) and isinstance(weights, str) for name, weights in record["models"].items()):
            raise ValueError("a model's name is none")
        recipe, unknown = validate_known_fields(Recipe, record["recipe"])
        if unknown:
            raise ValueError(f"it has fields that this version does not know: {', '.join(unknown[:6])}")
        record["recipe"] = recipe.model_dump(mode="json")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError, DatError) as error:
        reason = f"{type(error).__name__}: {ascii(str(error))[1:-1][:160]}"
        raise InputError(option, where, f"its {RECORD} is no record of an evaluation ({reason}): restore that file") from None
    return root, record


def score_again(root: str, record: dict[str, Any], recipe: Recipe, suite: str, engines: Engines | None = None) -> Rescored:
    """Judges every stored completion of an evaluation again, into a folder beside it.

    Starts Ray, or joins the cluster that is there. What an earlier call scored is kept.

    Args:
        root: folder of the finished evaluation.
        record: its record.
        recipe: the record's, with another judge.
        suite: name of the new folder.
        engines: how judges are made; default: the recipe's.

    Raises:
        InputError: a suite that is no name, a new folder that holds another replay, or verdicts of a judge with other weights.
        ShardError: the evaluation's files are altered.
        DatError: the judge failed too often, or did not start.
    """
    started = time.monotonic()
    out = join(root.rsplit("/", 1)[0], check_name("--suite", suite))
    if out == root:
        raise InputError("--suite", suite, "is the evaluation itself: name another suite")
    if "://" not in out and os.path.islink(out):
        raise InputError("--suite", suite, f"{out} is a symbolic link: name another suite")
    for folder in (root, out):
        refuse_links(folder, OPTION)
    # The same completions by the same judge: only then an earlier replay is continued.
    mark = hashlib.sha256(read_bytes(join(root, MANIFEST)) + fingerprint(recipe).encode()).hexdigest()[:16]
    if has_manifest(out):
        if read_manifest(out).fingerprint != mark:
            raise InputError("--suite", out, "holds another evaluation: name another --suite")
        earlier = load_metrics(out)
        return Rescored(out, earlier.attempts, earlier.errors, True, earlier)
    check_weights(out, models_of(recipe, *JUDGE_READERS), prompts_of(recipe, *JUDGES))
    before = read_table(root)
    source_errors = sum(error is not None and not error.startswith(UNREADABLE) for error in before["error"].to_pylist())
    chunks = [_chunk(root, file.path) for file in read_manifest(root).files]
    allowed, setting = error_rate(recipe)
    rate = min(1.0, 2 * allowed + source_errors / max(1, before.num_rows))
    limit = ErrorLimit(before.num_rows, rate, setting)
    store = ShardStore(out, ATTEMPTS, "attempt_id", limit, before.num_rows, excused=UNREADABLE)
    engines = engines or Engines()
    with start_ray(recipe.cluster), Progress("replay", before.num_rows) as progress, ExitStack() as stack:
        counter = ProgressCounter(progress)
        judges = start_judges(pinned(recipe, out, *JUDGES), engines, stack)
        todo = store.load_done(chunks)
        counter.add(before.num_rows - sum(len(chunk.items) for chunk in todo), "scored before")
        absent = {chunk.name for chunk in todo}
        judges.ask_again(store, [chunk for chunk in chunks if chunk.name not in absent])
        for chunk in todo:
            rows = [_unjudged(row) for row in chunk.items]
            judges.judge_rows(rows)
            store.put(chunk, rows)
            counter.add(len(rows), chunk.name)
        about = judges.about()
    stored = load_metrics(root)
    effects = StoredEffects(root, stored, record["models"], _beside(root, RISKS_FOLDER), recipe)
    folders = _prompt_folders(recipe)
    likelihoods, prompts = _beside(root, LIKELIHOODS), {attack: _beside(root, folder) for attack, folder in folders.items()}
    made = suite_metrics(
        recipe,
        suite,
        record["models"],
        StoredRows(
            attempts=store.rows(),
            likelihoods=likelihoods,
            prompts=prompts,
            searches=_beside(root, SEARCHES_FOLDER),
        ),
        judges=about,
        side_effects=effects.by_model(),
        seconds=time.monotonic() - started,
    )
    source = ReplayedSuite(suite=record["suite"], fingerprint=record["fingerprint"])
    metrics = made.model_copy(update={"replay": source, "about_attacks": stored.about_attacks})
    _copy_beside(root, out, [LIKELIHOODS, SEARCHES_FOLDER, HARMLESS_FOLDER, RISKS_FOLDER, *folders.values()])
    effects.copy_to(out)
    own = record | {"recipe": recipe.model_dump(mode="json"), "suite": suite, "replay_of": source.model_dump()}
    write_bytes(join(out, RECORD), json.dumps(own, indent=1).encode())
    store_metrics(out, metrics)
    store.publish(mark)
    return Rescored(out, metrics.attempts, metrics.errors, False, metrics)


def _chunk(root: str, name: str) -> Chunk[dict[str, Any]]:
    rows = read_file(join(root, name)).to_pylist()
    return Chunk(name, [row["attempt_id"] for row in rows], rows)


def _unjudged(row: dict[str, Any]) -> dict[str, Any]:
    """The attempt before any judge saw it: its id stays, so that two judges' rows can be joined."""
    bare = {**row, **dict.fromkeys(VERDICT)}
    if _lost_in_translation(row):
        bare["error"] = EMPTY_ANSWER
    return bare


def _lost_in_translation(row: dict[str, Any]) -> bool:
    """Whether nothing stands in an answer's place: older versions stored such translations, and let judges read the answer."""
    return row["judged_text"] is not None and not row["judged_text"].strip() and bool((row["completion"] or "").strip())


def _beside(root: str, folder: str) -> list[dict[str, Any]]:
    where = join(root, folder)
    return read_table(where).to_pylist() if has_manifest(where) else []


def _prompt_folders(recipe: Recipe) -> dict[str, str]:
    """Folder below the suite's, by attack, of those whose prompts a sampler drew."""
    attacks = chosen_attacks(recipe.evaluation)
    return {name: kind.prompts_folder for name, kind in attacks.items() if kind.prompts_folder is not None}


def _copy_beside(root: str, out: str, folders: Sequence[str]) -> None:
    """Prompts, likelihoods and searches, which no judge changes, so that the new folder stands alone too."""
    for folder in folders:
        if has_manifest(join(root, folder)):
            for name in [*(file.path for file in read_manifest(join(root, folder)).files), MANIFEST]:
                write_bytes(join(out, folder, name), read_bytes(join(root, folder, name)))
