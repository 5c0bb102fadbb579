"""Records of a study's parts: verdicts and figures without texts, small enough to keep, from which page and tables are made.

    RECORD/part.json                 whose runs, under which recipes, and where they were made
    RECORD/SUITE/                    a manifest, metrics.json, the attempts and, below risks/, the scored prompts of the gap

In place of what was asked and answered stands a digest, so that parts can be held against each other: the base model, asked
in each of them, was asked the same, and answered the same where two machines compute alike.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs

from dat_ray import __version__
from dat_ray.config.study import BASE, Study, trained_by
from dat_ray.data.row_types import Row
from dat_ray.data.schemas import ATTEMPTS, LONG_TEXT, RISKS
from dat_ray.data.shards import (
    exists,
    has_manifest,
    join,
    list_folder,
    read_manifest,
    read_table,
    write_bytes,
    write_manifest,
    write_shard,
)
from dat_ray.data.stored import stored_object, well_formed
from dat_ray.errors import InputError
from dat_ray.evaluation.gap_pairs import RISKS_FOLDER
from dat_ray.evaluation.gap_results import PROMPT_SETS, TRAINING_PROMPTS
from dat_ray.evaluation.results import METRICS, ModelMetrics, load_metrics, store_metrics
from dat_ray.reporting.collect import CollectedSuite, read_suite

OPTION = "--merge"
RECORDS, PART, FILE = "records", "part.json", "rows.parquet"
FORMAT = 1
# What a model is asked or answers, or is made from; a list of turns has none in its place.
TEXTS = LONG_TEXT | {"goal", "target", "prefill"}


@dataclass(frozen=True)
class PartRecord:
    """What a part's record says of itself.

    Attributes:
        root: its folder.
        runs: model to the fingerprint of its recipe.
        suites: name to the fingerprint of its recipe.
    """

    root: str
    runs: dict[str, str]
    suites: dict[str, str]


@dataclass(frozen=True)
class Merged:
    """Parts of one study together.

    Attributes:
        suites: by name, each with the models of all parts, the base model once.
        notes: what a reader has to know of parts that were made apart.
    """

    suites: dict[str, CollectedSuite]
    notes: list[str]


def write_part(plan: Study, folders: Mapping[str, str], root: str) -> str:
    """Writes the record of a study, or of a part of it; returns its folder.

    Args:
        plan: whose runs have been evaluated.
        folders: of the finished evaluations, by suite.
        root: of the record.
    """
    for suite, folder in folders.items():
        _write_table(read_table(folder), ATTEMPTS, join(root, suite))
        # Pairs of models and groups are of one suite: a study has differences of its own, and they are most of the file.
        store_metrics(join(root, suite), load_metrics(folder).model_copy(update={"paired": [], "groups": {}}))
        risks = join(folder, RISKS_FOLDER)
        if has_manifest(risks):
            _write_table(read_table(risks), RISKS, join(root, suite, RISKS_FOLDER))
    tree = {
        "format_version": FORMAT,
        "study": plan.config.name,
        "dat_ray": __version__,
        "platform": platform.platform(),
        "runs": plan.run_marks,
        "suites": plan.suite_marks,
    }
    write_bytes(join(root, PART), json.dumps(tree, indent=1).encode())
    return root


def _write_table(table: pa.Table, schema: pa.Schema, root: str) -> None:
    rows = [{name: _digested(name, value) for name, value in row.items()} for row in table.to_pylist()]
    write_manifest(root, [write_shard(root, FILE, pa.Table.from_pylist(rows, schema=schema))], "record")


def _digested(column: str, value: Any) -> Any:
    if column not in TEXTS:
        return value
    return _digest(value) if isinstance(value, str) else None


@lru_cache(maxsize=100_000)
def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:12]


def read_parts(plan: Study, places: Iterable[str]) -> Merged:
    """The suites of a study from the records of its parts.

    Args:
        plan: the whole study, or the runs of it that are to be compared.
        places: folders of records, or folders that hold some: a study's, or one with a folder for each part.

    Raises:
        InputError: a place holds no record, a record is of other settings or of a base model with other weights, a run is in two
            records or in none.
    """
    parts = [part for place in places for part in _parts_of(place)]
    _check(plan, parts)
    # In an order of their own, whatever their folders are called: of the base model's answers the first part's count.
    parts.sort(key=lambda part: [run.model in part.runs for run in plan.runs], reverse=True)
    names = [*plan.suites, *plan.front_suites]
    found = {suite: [_read(join(part.root, suite)) for part in parts] for suite in names}
    for suite, collected in found.items():
        _same_base(suite, parts, collected)
    notes = [_agreement(suite, collected) for suite, collected in found.items() if len(parts) > 1]
    return Merged({suite: _together(plan, parts, suite, collected) for suite, collected in found.items()}, notes)


def _parts_of(place: str) -> Iterator[PartRecord]:
    roots = [root for root in (place, *_below(join(place, RECORDS)), *_below(place)) if exists(join(root, PART))]
    if not roots:
        raise InputError(
            OPTION, place, f"holds no record of a study's part ({PART}): name a study's folder, or one in its {RECORDS}/"
        )
    for root in roots:
        where = join(root, PART)
        tree = stored_object(where)
        with well_formed(where):
            if tree["format_version"] != FORMAT:
                raise InputError(OPTION, root, f"has format {tree['format_version']}, this program reads {FORMAT}")
            yield PartRecord(
                root, {str(k): str(v) for k, v in tree["runs"].items()}, {str(k): str(v) for k, v in tree["suites"].items()}
            )


def _read(root: str) -> CollectedSuite:
    """One suite of a record; where its gap was measured the scored prompts are there too."""
    found = read_suite(root)
    if any(model.gap is not None for model in found.metrics.models.values()):
        read_manifest(join(root, RISKS_FOLDER))
    return found


def _below(root: str) -> list[str]:
    return sorted(join(root, info.base_name) for info in list_folder(root) if info.type == pafs.FileType.Directory)


def _check(plan: Study, parts: Sequence[PartRecord]) -> None:
    wanted, suites = plan.run_marks, plan.suite_marks
    seen: dict[str, str] = {}
    for part in parts:
        for name, mark in suites.items():
            if part.suites.get(name) != mark:
                remedy = f"its suite {name} is of recipe {part.suites.get(name)}, this study's of {mark}"
                raise InputError(OPTION, part.root, f"{remedy}: merge it by the file that it was made by")
        for model, mark in part.runs.items():
            if model in wanted and mark != wanted[model]:
                remedy = f"its {model} is of recipe {mark}, this study's of {wanted[model]}"
                raise InputError(OPTION, part.root, f"{remedy}: merge it by the file that it was made by")
            if model in seen:
                raise InputError(OPTION, part.root, f"has {model}, and {seen[model]} has it too: leave one of them out")
            seen[model] = part.root
    absent = [model for model in wanted if model not in seen]
    if absent:
        some = ", ".join(absent[:8]) + (f" and {len(absent) - 8} others" if len(absent) > 8 else "")
        raise InputError(OPTION, f"{len(parts)} records", f"have no {some}: make them with --only, or leave them out with --only")


def _same_base(suite: str, parts: Sequence[PartRecord], collected: Sequence[CollectedSuite]) -> None:
    weights: list[str] = []
    for part, one in zip(parts, collected, strict=True):
        with well_formed(join(part.root, suite, METRICS)):
            own = one.metrics.models[BASE].weights
        weights.append(own)
        if own != weights[0]:
            raise InputError(
                OPTION, part.root, f"asked a base model with other weights ({own}) than {parts[0].root} ({weights[0]})"
            )


def _agreement(suite: str, collected: Sequence[CollectedSuite]) -> str:
    """How far the base model, asked in every part, was asked and answered the same."""
    tables = [{_place(row): row for row in one.attempts if row["model"] == BASE} for one in collected]
    first, others = tables[0], tables[1:]
    total = sum(len(first.keys() | table.keys()) for table in others)
    both = [(first[key], table[key]) for table in others for key in first.keys() & table.keys()]
    same = {name: sum(one[name] == other[name] for one, other in both) for name in ("prompt", "completion", "verdict")}
    return (
        f"{suite}: made in {len(collected)} parts. Of {total} questions to the base model in later parts {same['prompt']} were "
        f"in the words of the first, {same['completion']} were answered in its words, and {same['verdict']} judged the same."
    )


def _place(row: Row) -> tuple[Any, ...]:
    return row["attack"], row["behavior_id"], row["attempt_index"]


def _is_gap_of_base(row: Row) -> bool:
    return bool(row["model"] == BASE and row["prompt_set"] == TRAINING_PROMPTS)


def _together(plan: Study, parts: Sequence[PartRecord], suite: str, collected: Sequence[CollectedSuite]) -> CollectedSuite:
    """The models of the study's runs, and the base model: asked in the first part, its gap of the one that measured it."""
    chosen = {run.model for run in plan.runs}
    scored = next((one for one in collected if any(map(_is_gap_of_base, one.risks))), collected[0])
    models: dict[str, ModelMetrics] = {}
    attempts, risks, rows, unparsed = list[Row](), list[Row](), list[Row](), dict[str, int]()
    for part, one in zip(parts, collected, strict=True):
        own = {name for name in one.metrics.models if name != BASE and trained_by(name) in chosen}
        asked = own | {BASE} if one is collected[0] else own
        models |= {name: found for name, found in one.metrics.models.items() if name in asked}
        unparsed |= {name: count for name, count in one.metrics.unparsed.items() if name in asked}
        attempts += [row for row in one.attempts if row["model"] in asked]
        # The base model's scores on the training prompts of other runs are of the part that has those runs.
        risks += [row for row in one.risks if row["model"] in own]
        risks += [row for row in one.risks if row["model"] == BASE and (one is scored or row["prompt_set"] not in PROMPT_SETS)]
        rows += [
            row for row in read_table(join(part.root, suite)).select(["model", "error"]).to_pylist() if row["model"] in asked
        ]
    models[BASE] = models[BASE].model_copy(update={"gap": scored.metrics.models[BASE].gap})
    counts = {
        "attempts": len(rows),
        "errors": sum(row["error"] is not None for row in rows),
        "unparsed": unparsed,
    }
    # Made of two models each, which may be of two parts; the page and the tables of a study have differences of their own.
    metrics = collected[0].metrics.model_copy(update={"models": models, "paired": [], "groups": {}, **counts})
    return CollectedSuite(metrics, attempts, risks)
