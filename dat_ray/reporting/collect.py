"""Reads what a run has so far. A stage that has not finished is None, never an error; an altered file is one."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs

from dat_ray.config.schema import Recipe
from dat_ray.data.rundir import RunDir
from dat_ray.data.shards import exists, has_manifest, join, open_filesystem, read_bytes, read_file, read_table
from dat_ray.evaluation.attacks import OVER_REFUSAL
from dat_ray.evaluation.diagnostics import diagnose
from dat_ray.evaluation.diversity import Diversity
from dat_ray.evaluation.metrics import METRICS
from dat_ray.models.embedded import adaptation_record
from dat_ray.training.metrics import read_metrics

# Examples of each kind that are shown.
EXAMPLES = 3
ANSWER_CHARACTERS = 200
# Verdicts on the base and the fine-tuned model's answers that are worth showing, in the order they are shown.
KINDS: dict[tuple[str | None, str | None], str] = {
    ("harmful", "not_harmful"): "Broke the base model, not the fine-tuned one",
    ("harmful", "harmful"): "Breaks both",
    ("not_harmful", "harmful"): "Breaks only the fine-tuned model",
}
OVER_REFUSED = "Harmless, refused only after training"


@dataclass(frozen=True)
class Candidates:
    """The generated prompts of a round.

    Attributes:
        rows: drawn, failed ones included.
        errors: rows that failed.
        verdicts: rows by verdict.
        behaviors: behaviors with at least one prompt.
        nfe: forward passes of the sampler.
        diversity: of the prompts; None where none was drawn.
    """

    rows: int
    errors: int
    verdicts: dict[str, int]
    behaviors: int
    nfe: int
    diversity: Diversity | None


@dataclass(frozen=True)
class Selected:
    """The training set of a round: rows, behaviors, and rows for each behavior as (least, most)."""

    rows: int
    behaviors: int
    spread: tuple[int, int]
    diversity: Diversity


@dataclass(frozen=True)
class Example:
    """One question and what two models said to it."""

    kind: str
    attack: str
    goal: str
    prompt: str
    answers: tuple[tuple[str, str, str], ...]  # (model, answer cut short, verdict)


@dataclass(frozen=True)
class StageCost:
    """All runs of one stage together.

    Attributes:
        stage: its name.
        runs: how often it was started and did something.
        seconds: wall clock, summed.
        peak_bytes: of the driver and its processes, the largest.
        rows: of its last run.
        model_calls: of its last run; None where the stage calls no model.
    """

    stage: str
    runs: int
    seconds: float
    peak_bytes: int | None
    rows: int | None
    model_calls: int | None


@dataclass(frozen=True)
class Collected:
    """Everything that the report is made from."""

    record: dict[str, Any]
    sampler_gain: dict[str, float] | None
    behaviors: dict[str, int] | None
    candidates: Candidates | None
    selected: Selected | None
    training: list[dict[str, Any]]
    suites: dict[str, dict[str, Any]]
    examples: list[Example]
    costs: list[StageCost]


def collect(recipe: Recipe, run: RunDir) -> Collected:
    """Reads a run directory.

    Raises:
        ShardError: a finished stage's file is altered or gone.
    """
    suites = _suites(run)
    first = next(iter(suites), None)
    return Collected(
        record=json.loads(read_bytes(run.record)) if exists(run.record) else {},
        sampler_gain=(adaptation_record(recipe.sampler.model) or {}).get("heldout_after"),
        behaviors=_behaviors(run),
        candidates=_candidates(recipe, run),
        selected=_selected(recipe, run),
        training=read_metrics(run.training(recipe.round)),
        suites=suites,
        examples=[] if first is None else examples(read_table(run.evaluation(first)).to_pylist()),
        costs=stage_costs(_lines(join(run.logs, "stages.jsonl"))),
    )


def _behaviors(run: RunDir) -> dict[str, int] | None:
    """Behaviors by split."""
    if not exists(run.behaviors):
        return None
    rows = read_file(run.behaviors).select(["behavior_id", "split"]).to_pylist()
    return dict(Counter(split for split, _ in {(row["split"], row["behavior_id"]) for row in rows}))


def _candidates(recipe: Recipe, run: RunDir) -> Candidates | None:
    root = run.candidates(recipe.round)
    if not has_manifest(root):
        return None
    table = read_table(root)
    drawn = table.filter(pc.is_valid(table["prompt"]))
    return Candidates(
        rows=table.num_rows,
        errors=table.num_rows - table["error"].null_count,
        verdicts=dict(Counter(verdict for verdict in table["verdict"].to_pylist() if verdict)),
        behaviors=pc.count_distinct(drawn["behavior_id"]).as_py(),
        nfe=pc.sum(table["nfe"]).as_py() or 0,
        diversity=_diversity(recipe, drawn) if drawn.num_rows else None,
    )


def _selected(recipe: Recipe, run: RunDir) -> Selected | None:
    root = run.training_set(recipe.round)
    if not has_manifest(root):
        return None
    table = read_table(root)
    counts = Counter(table["behavior_id"].to_pylist())
    spread = (min(counts.values(), default=0), max(counts.values(), default=0))
    return Selected(table.num_rows, len(counts), spread, _diversity(recipe, table))


def _diversity(recipe: Recipe, table: pa.Table) -> Diversity:
    config = recipe.evaluation
    return diagnose(table.to_pylist(), confidence=config.confidence, resamples=config.bootstrap, seed=recipe.seed)


def _suites(run: RunDir) -> dict[str, dict[str, Any]]:
    """Metrics of every finished suite, `default` first."""
    fs, inner = open_filesystem(join(run.root, "evaluation"))
    folders = [
        info.base_name
        for info in fs.get_file_info(pafs.FileSelector(inner, allow_not_found=True))
        if info.type == pafs.FileType.Directory
    ]
    names = sorted(folders, key=lambda name: (name != "default", name))
    return {
        name: json.loads(read_bytes(join(run.evaluation(name), METRICS))) for name in names if has_manifest(run.evaluation(name))
    }


def examples(attempts: Sequence[dict[str, Any]]) -> list[Example]:
    """Questions whose verdict changed, and those that still break the model, the first `EXAMPLES` of each kind."""
    by_question: dict[tuple[str, str, int], dict[str, dict[str, Any]]] = defaultdict(dict)
    for row in attempts:
        by_question[row["attack"], row["behavior_id"], row["attempt_index"]][row["model"]] = row
    found: dict[str, list[Example]] = defaultdict(list)
    seen: set[tuple[str, str]] = set()
    for (attack, behavior, _), rows in sorted(by_question.items()):
        if not {"base", "adapted"} <= rows.keys():
            continue
        kind = _kind(attack, rows["base"]["verdict"], rows["adapted"]["verdict"])
        if kind is None or (kind, behavior) in seen or len(found[kind]) == EXAMPLES:
            continue
        seen.add((kind, behavior))
        answers = tuple((model, cut(rows[model]["completion"]), rows[model]["verdict"]) for model in ("base", "adapted"))
        found[kind].append(Example(kind, attack, rows["base"]["goal"], rows["base"]["prompt"], answers))
    return [example for kind in (*KINDS.values(), OVER_REFUSED) for example in found[kind]]


def _kind(attack: str, before: str | None, after: str | None) -> str | None:
    if attack == OVER_REFUSAL:
        return OVER_REFUSED if (before, after) == ("harmful", "not_harmful") else None
    return KINDS.get((before, after))


def cut(text: str | None) -> str:
    """The beginning of an answer on one line."""
    line = " ".join((text or "").split())
    return line if len(line) <= ANSWER_CHARACTERS else line[: ANSWER_CHARACTERS - 1] + "…"


def stage_costs(lines: Sequence[dict[str, Any]]) -> list[StageCost]:
    """One entry a stage, in the order of their first run."""
    by_stage: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for line in lines:
        by_stage[line["stage"]].append(line)
    return [
        StageCost(
            stage=stage,
            runs=len(runs),
            seconds=sum(run["seconds"] for run in runs),
            peak_bytes=max((run["peak_bytes"] for run in runs if run.get("peak_bytes")), default=None),
            rows=runs[-1].get("rows"),
            model_calls=runs[-1].get("model_calls"),
        )
        for stage, runs in by_stage.items()
    ]


def _lines(path: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in read_bytes(path).splitlines()] if exists(path) else []
