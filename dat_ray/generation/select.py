"""The select stage: the most effective prompts of each behavior, or its goals, become the training set."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from dat_ray.config.data import SelectionConfig
from dat_ray.config.schema import Recipe
from dat_ray.data.ids import row_id
from dat_ray.data.rundir import FIRST_ROUND, RunDir, rewrites_folder
from dat_ray.data.schemas import TRAINING_SET
from dat_ray.data.shards import has_manifest, read_file, read_manifest, read_table, write_manifest, write_shard
from dat_ray.data.text import holds, normalize
from dat_ray.errors import DatError
from dat_ray.generation.goals import goal_rows, rewrite_rows

# Why a candidate is not in the training set, in the order in which it is asked.
REASONS = ("error", "unparsed", "empty", "leak", "duplicate", "rank")


@dataclass(frozen=True)
class SelectionReport:
    """What the stage kept.

    Args:
        kept: rows of the training set.
        dropped: reason -> candidates. `rank` means good enough to train on, but not among the best K.
        behaviors: behaviors with at least one candidate.
        without: ids of behaviors of which no candidate was kept.
        skipped: whether the training set was there already.
    """

    kept: int
    dropped: dict[str, int]
    behaviors: int
    without: tuple[str, ...]
    skipped: bool


def drop_reason(row: dict[str, Any]) -> str | None:
    """Why a candidate cannot be trained on, looked at by itself.

    A prompt that holds the response it should lead to teaches nothing ("leak"); the comparison ignores case,
    punctuation and spacing.
    """
    if row["error"] is not None:
        return "error"
    if row["verdict"] == "unparsed":
        return "unparsed"
    if not normalize(row["prompt"]):
        return "empty"
    if holds(row["prompt"], row["target"]):
        return "leak"
    return None


def rank_key(row: dict[str, Any], score: str) -> tuple[float | str, ...]:
    """Sorts the best candidate first; the id decides between equals, so that the order is fixed."""
    judged, likely = -_or_worst(row["score"]), -_or_worst(row["target_logprob"])
    keys = {"judge": (judged,), "loglik": (likely,), "judge_then_loglik": (judged, likely)}
    return (*keys[score], row["candidate_id"])


def _or_worst(value: float | None) -> float:
    return -math.inf if value is None or math.isnan(value) else value


def choose(candidates: pa.Table, cfg: SelectionConfig) -> tuple[pa.Table, dict[str, int], tuple[str, ...]]:
    """Keeps the best `cfg.keep` distinct prompts of each behavior, over all its targets.

    Of prompts that are equal once normalized the best ranked stays.

    Args:
        candidates: CANDIDATES, in any order: the result does not depend on it.
        cfg: keep, score, include_original.

    Returns:
        TRAINING_SET sorted by behavior and rank, counts by reason, and the behaviors of which nothing was kept.
    """
    dropped: Counter[str] = Counter(dict.fromkeys(REASONS, 0))
    usable: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    goals: dict[str, dict[str, Any]] = {}
    for row in candidates.to_pylist():
        first = goals.setdefault(row["behavior_id"], row)
        if row["target_index"] < first["target_index"]:
            goals[row["behavior_id"]] = row
        reason = drop_reason(row)
        if reason:
            dropped[reason] += 1
        else:
            usable[row["behavior_id"]].append(row)

    kept, without = [], []
    for behavior in sorted(goals):
        texts: set[str] = set()
        best: list[dict[str, Any]] = []
        for row in sorted(usable[behavior], key=lambda row: rank_key(row, cfg.score)):
            text = normalize(row["prompt"])
            if text in texts:
                dropped["duplicate"] += 1
            elif len(best) == cfg.keep:
                dropped["rank"] += 1
            else:
                best.append(row)
            texts.add(text)
        if not best:
            without.append(behavior)
        if cfg.include_original:
            best.append(_original(goals[behavior]))
        kept += [{**{name: row[name] for name in TRAINING_SET.names[:-1]}, "rank": rank} for rank, row in enumerate(best)]
    return pa.Table.from_pylist(kept, schema=TRAINING_SET), dict(dropped), tuple(without)


def _original(row: dict[str, Any]) -> dict[str, Any]:
    """The behavior's own goal as one more prompt, towards its first target; never judged."""
    identifier = row_id("original", row["behavior_id"], row["target"], row["round"])
    return {**row, "candidate_id": identifier, "prompt": row["goal"], "score": None, "target_logprob": None}


def needs_candidates(cfg: SelectionConfig) -> bool:
    """Whether the training set is made of candidates, and so a sampler has to run first."""
    return cfg.source == "candidates" or (cfg.source == "mixture" and cfg.rewrites is None)


def select(run: RunDir, recipe: Recipe, round_index: int = FIRST_ROUND) -> SelectionReport:
    """Writes the training set of a round from its candidates, its behaviors' goals, or both.

    Raises:
        ShardError: the candidates are not finished, altered, or of another recipe.
        InputError: a table of rewrites that cannot be read.
        DatError: nothing was kept.
    """
    mark, cfg, root = run.fingerprint_of(recipe), recipe.selection, run.training_set(round_index)
    dropped: dict[str, int] = {}
    without: tuple[str, ...] = ()
    chosen = behaviors = None
    if needs_candidates(cfg):
        candidates = read_table(run.candidates(round_index), fingerprint=mark)
        chosen, dropped, without = choose(candidates, cfg)
        behaviors = len(set(candidates["behavior_id"].to_pylist()))
        if chosen.num_rows == 0:
            counts = ", ".join(f"{reason} {count}" for reason, count in dropped.items() if count)
            where = run.candidates(round_index)
            raise DatError(f"select kept none of {candidates.num_rows} candidates ({counts}): look at {where}")
    if cfg.source == "candidates":
        assert chosen is not None
        table = chosen
    else:
        known = read_file(run.behaviors)
        table = goal_rows(known)
        behaviors = len(set(table["behavior_id"].to_pylist()))
        if cfg.source == "mixture":
            rewrites = rewrite_rows(known, cfg.rewrites) if cfg.rewrites is not None else chosen
            assert rewrites is not None
            _publish(rewrites_folder(run, round_index), rewrites, mark)
    skipped = _publish(root, table, mark)
    assert behaviors is not None
    return SelectionReport(table.num_rows, dropped, behaviors, without, skipped)


def _publish(root: str, table: pa.Table, mark: str) -> bool:
    """Writes a table with its manifest, unless it is there; whether it was."""
    if has_manifest(root):
        read_manifest(root, fingerprint=mark)
        return True
    write_manifest(root, [write_shard(root, "part-00000.parquet", table)], mark)
    return False
