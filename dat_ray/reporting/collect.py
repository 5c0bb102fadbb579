"""Reads what a run has so far. A stage that has not finished is None, never an error; an altered file is one."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from dat_ray.config.cluster import Pool
from dat_ray.config.schema import Recipe
from dat_ray.data.rundir import FIRST_ROUND, RunDir, RunRecord, read_record, rounds_begun
from dat_ray.data.schemas import for_training_goals
from dat_ray.data.shards import exists, has_manifest, join, read_file, read_manifest, read_table
from dat_ray.data.stored import stored_lines, well_formed
from dat_ray.evaluation.attacks.rewriting import ATTACKER
from dat_ray.evaluation.gap_pairs import RISKS_FOLDER
from dat_ray.evaluation.judges import judge_pools
from dat_ray.evaluation.on_goal import is_attack
from dat_ray.evaluation.outcomes import JUDGED
from dat_ray.evaluation.prompt_meaning import PromptMeaning, read_meaning
from dat_ray.evaluation.registry import builtin_attacks
from dat_ray.evaluation.results import Metrics, load_metrics
from dat_ray.measures.diversity import Diversity
from dat_ray.measures.intervals import Interval, wilson_pooled
from dat_ray.measures.prompt_statistics import diagnose
from dat_ray.measures.style import StyleAuc, style_of
from dat_ray.models.embedded import adaptation_record
from dat_ray.training.counts import TableCount, read_counts
from dat_ray.training.retain_set import retain_folder
from dat_ray.training.update_metrics import read_metrics, read_rounds


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
class RoundFigures:
    """One of several rounds.

    Attributes:
        number: from 1 on.
        harmful: share of its prompts' judged answers that are harmful: of the base model in the first round, of the model that
            the round before left in the others; the interval is over behaviors.
        kept: rows of its training set; None where it is not there yet.
        updates: of its training so far.
    """

    number: int
    harmful: Interval
    kept: int | None
    updates: int


@dataclass(frozen=True)
class StageTotal:
    """All runs of one stage together.

    Attributes:
        stage: its name.
        runs: how often it was started and did something.
        seconds: wall clock, summed.
        peak_bytes: of the driver and its processes, the largest.
        cpu_seconds: processor time of the same processes, summed; None where an older run did not measure it.
        gpu_seconds: GPUs that the stage's pools may hold at the same time, times its seconds: an upper bound.
        rows: of its last run.
        model_calls: of its last run; None where the stage calls no model.
    """

    stage: str
    runs: int
    seconds: float
    peak_bytes: int | None
    cpu_seconds: float | None
    gpu_seconds: float
    rows: int | None
    model_calls: int | None


@dataclass(frozen=True)
class CollectedSuite:
    """One evaluation: its metrics.json, the attempts behind it, and the scored prompts of the distribution gap."""

    metrics: Metrics
    attempts: list[dict[str, Any]]
    risks: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Collected:
    """Everything that the report is made from."""

    record: RunRecord | None
    sampler_gain: dict[str, float] | None
    behaviors: dict[str, int] | None
    categories: dict[str, str | None]
    candidates: Candidates | None
    selected: Selected | None
    meaning: PromptMeaning | None
    style: StyleAuc | None
    rounds: list[RoundFigures]
    training: list[dict[str, Any]]
    row_counts: dict[str, TableCount]
    suites: dict[str, CollectedSuite]
    costs: list[StageTotal]
    wall_seconds: float


def collect(recipe: Recipe, run: RunDir) -> Collected:
    """Reads a run directory.

    Raises:
        ShardError: a finished stage's file is altered or gone.
    """
    stages = join(run.logs, "stages.jsonl")
    with well_formed(stages):
        lines = _lines(stages)
        costs, wall_seconds = stage_costs(lines, recipe), wall_clock(lines)
    behaviors = read_file(run.behaviors).to_pylist() if exists(run.behaviors) else None
    *_, newest = rounds_begun(run, recipe)
    return Collected(
        record=read_record(run) if exists(run.record) else None,
        sampler_gain=(adaptation_record(recipe.sampler.model) or {}).get("heldout_after"),
        behaviors=None if behaviors is None else _splits(behaviors),
        categories={row["behavior_id"]: row["category"] for row in behaviors or []},
        candidates=_candidates(recipe, run.candidates(newest)),
        selected=_selected(recipe, run.training_set(newest)),
        meaning=read_meaning(run.training_set(newest)),
        style=_style(run.training_set(newest), retain_folder(run, FIRST_ROUND)),
        rounds=_rounds(recipe, run),
        training=read_rounds([run.training(index) for index in rounds_begun(run, recipe)]),
        row_counts=read_counts(run.training(newest)),
        suites=_suites(run),
        costs=costs,
        wall_seconds=wall_seconds,
    )


def _splits(behaviors: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Behaviors by split."""
    return dict(Counter(split for split, _ in {(row["split"], row["behavior_id"]) for row in behaviors}))


def _candidates(recipe: Recipe, root: str) -> Candidates | None:
    if not has_manifest(root):
        return None
    table = for_training_goals(read_table(root))
    drawn = table.filter(pc.is_valid(table["prompt"]))
    return Candidates(
        rows=table.num_rows,
        errors=table.num_rows - table["error"].null_count,
        verdicts=dict(Counter(verdict for verdict in table["verdict"].to_pylist() if verdict)),
        behaviors=pc.count_distinct(drawn["behavior_id"]).as_py(),
        nfe=pc.sum(table["nfe"]).as_py() or 0,
        diversity=_diversity(recipe, drawn) if drawn.num_rows else None,
    )


def _selected(recipe: Recipe, root: str) -> Selected | None:
    if not has_manifest(root):
        return None
    table = read_table(root)
    counts = Counter(table["behavior_id"].to_pylist())
    spread = (min(counts.values(), default=0), max(counts.values(), default=0))
    return Selected(table.num_rows, len(counts), spread, _diversity(recipe, table))


def _diversity(recipe: Recipe, table: pa.Table) -> Diversity:
    config = recipe.evaluation
    return diagnose(table.to_pylist(), confidence=config.confidence, resamples=config.bootstrap, seed=recipe.seed)


def _rounds(recipe: Recipe, run: RunDir) -> list[RoundFigures]:
    """Every round of a run that has several; nothing for a run of one."""
    found = []
    for index in rounds_begun(run, recipe) if recipe.rounds > 1 else ():
        root, chosen = run.candidates(index), run.training_set(index)
        if not has_manifest(root):
            break
        harmful: dict[str, list[float]] = defaultdict(list)
        for row in for_training_goals(read_table(root)).to_pylist():
            if row["verdict"] in JUDGED:
                harmful[row["behavior_id"]].append(float(row["verdict"] == "harmful"))
        kept = read_manifest(chosen).rows if has_manifest(chosen) else None
        log = read_metrics(run.training(index))
        found.append(RoundFigures(index + 1, wilson_pooled(harmful, recipe.evaluation.confidence), kept, len(log)))
    return found


def _style(*folders: str) -> StyleAuc | None:
    """How far form alone tells the prompts of training's harmful rows from those of its retain rows."""
    if not all(map(has_manifest, folders)):
        return None
    harmful, retained = (list(dict.fromkeys(read_table(folder)["prompt"].to_pylist())) for folder in folders)
    return style_of(harmful, retained)


def _suites(run: RunDir) -> dict[str, CollectedSuite]:
    """Every finished suite, `default` first."""
    names = sorted(run.suites(), key=lambda name: (name != "default", name))
    return {name: read_suite(run.evaluation(name)) for name in names if has_manifest(run.evaluation(name))}


def read_suite(root: str) -> CollectedSuite:
    """One finished evaluation folder."""
    metrics = load_metrics(root)
    rows = read_table(root).to_pylist()
    # As in the figures: a drawn prompt off the goal is no attempt.
    attempts = [row for row in rows if is_attack(row, (row["attack"],), _floor(metrics, row))]
    risks = join(root, RISKS_FOLDER)
    return CollectedSuite(metrics, attempts, read_table(risks).to_pylist() if has_manifest(risks) else [])


def _floor(metrics: Metrics, row: dict[str, Any]) -> float | None:
    return metrics.goal_floor(row["model"], row["attack"]) if row["model"] in metrics.models else None


def gpus_held(stage: str, recipe: Recipe) -> float:
    """GPUs that the pools of a stage may hold at the same time, all at their largest."""
    cluster, retain = recipe.cluster, recipe.training.retain
    encoder = [] if recipe.encoder is None else [cluster.encoder]
    generation = [cluster.sampler, cluster.target, cluster.judge, *encoder]
    # What works at the same time, for each part of the stage.
    parts: dict[str, list[list[Pool]]] = {
        "generate": [generation],
        "fresh": [generation],
        "select": [encoder],
        "retain": [[cluster.target]],
        # The base model answers the retain set before the training begins.
        "train": [[cluster.trainer], [] if retain is None else [cluster.target]],
        "evaluate": [_evaluation_pools(recipe)],
        "compare": [_evaluation_pools(recipe)],
        "replay": [[*judge_pools(recipe).values()]],
    }
    together = parts.get(stage.removesuffix(" (shared)"), [])
    return max((sum(pool.num_gpus * pool.max_actors for pool in pools) for pools in together), default=0.0)


def _evaluation_pools(recipe: Recipe) -> list[Pool]:
    """Pools of an evaluation. What somebody else's attacks use is not known, and their classes are not imported here."""
    config, cluster, builtin = recipe.evaluation, recipe.cluster, builtin_attacks()
    kinds = [builtin.get(name) for name in config.attacks]
    draws = any(kind is None or kind.prompts_folder is not None for kind in kinds) or config.gap is not None
    writes = config.attacker is not None and any(kind is None or ATTACKER in kind.needs for kind in kinds)
    compares = recipe.encoder is not None and (config.min_goal_similarity is not None or config.gap is not None)
    return [
        *([cluster.sampler] if draws or recipe.behaviors.harmless_heldout is not None else []),
        *([cluster.encoder] if compares else []),
        *([cluster.attacker] if writes else []),
        cluster.target,
        *judge_pools(recipe).values(),
    ]


def stage_costs(lines: Sequence[dict[str, Any]], recipe: Recipe) -> list[StageTotal]:
    """One entry a stage, in the order of their first run."""
    by_stage: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for line in lines:
        by_stage[line["stage"]].append(line)
    found = []
    for stage, runs in by_stage.items():
        seconds = sum(run["seconds"] for run in runs)
        cpu = [run["cpu_seconds"] for run in runs if run.get("cpu_seconds") is not None]
        found.append(
            StageTotal(
                stage=stage,
                runs=len(runs),
                seconds=seconds,
                peak_bytes=max((run["peak_bytes"] for run in runs if run.get("peak_bytes")), default=None),
                cpu_seconds=sum(cpu) if len(cpu) == len(runs) else None,
                gpu_seconds=seconds * gpus_held(stage, recipe),
                rows=runs[-1].get("rows"),
                model_calls=runs[-1].get("model_calls"),
            )
        )
    return found


def wall_clock(lines: Sequence[Mapping[str, Any]]) -> float:
    """Seconds in which a stage was at work. One may hold another, as evaluation the drawing of fresh prompts."""
    total, until = 0.0, -math.inf
    for began, seconds in sorted((line["started"], line["seconds"]) for line in lines):
        ended = began + seconds
        total += max(0.0, ended - max(began, until))
        until = max(until, ended)
    return total


def _lines(path: str) -> list[dict[str, Any]]:
    return stored_lines(path) if exists(path) else []
